"""``sds status``: what an agent does, read from its admin socket.

Owns the view. Invariant: ``--output json`` is one JSON object, the message
``sds.agent.v1.Status`` in protobuf's JSON form with the field names of the file.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import grpc
from google.protobuf import json_format
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sds._proto.sds.agent.v1 import agent_pb2
from sds.agent.admin import SERVICE
from sds.errors import ConfigurationError, SocketError

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_ANSWER_SECONDS: Final = 5.0
_WATCH_SECONDS: Final = 1.0
_STYLES: Final = {"valid": "green", "waiting": "yellow", "refused": "red"}


@click.command("status")
@click.option(
    "--socket",
    "path",
    type=click.Path(path_type=Path),
    help="The agent's admin socket (<run_dir>/admin.sock).",
)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Or its run directory.")
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def status(path: Path | None, run_dir: Path | None, *, watch: bool, output: str) -> None:
    """Show identities, expiry, rotations and errors of a running agent.

    Ends with status 1 where the agent is not ready.
    """
    if (path is None) == (run_dir is None):
        raise ConfigurationError("give --socket or --run-dir", advice="one of them, not both")
    socket = path if path is not None else Path(run_dir or "") / "admin.sock"
    with grpc.insecure_channel(f"unix:{socket.absolute()}") as channel:
        if watch and output == "table":
            _watch(channel, socket)
            return
        while True:
            seen = _ask(channel, socket)
            if output == "json":
                click.echo(json.dumps(_plain(seen)))
            else:
                Console().print(_view(seen))
            if not watch:
                break
            time.sleep(_WATCH_SECONDS)
    if not seen.ready:
        raise SystemExit(1)


def _watch(channel: grpc.Channel, socket: Path) -> None:
    with Live(_view(_ask(channel, socket)), auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_SECONDS)
            live.update(_view(_ask(channel, socket)), refresh=True)


def _ask(channel: grpc.Channel, socket: Path) -> agent_pb2.Status:
    call = channel.unary_unary(
        f"/{SERVICE}/GetStatus",
        request_serializer=agent_pb2.GetStatusRequest.SerializeToString,
        response_deserializer=agent_pb2.Status.FromString,
    )
    try:
        answer: agent_pb2.Status = call(agent_pb2.GetStatusRequest(), timeout=_ANSWER_SECONDS)
    except grpc.RpcError as error:
        details = getattr(error, "details", error.__str__)()
        raise SocketError(
            f"no agent answers on {socket}: {details}",
            advice="is the agent running, and is this its run directory? Its socket is for the "
            "agent's own user",
        ) from error
    return answer


def _plain(seen: agent_pb2.Status) -> object:
    return json_format.MessageToDict(
        seen, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _view(seen: agent_pb2.Status) -> Table:
    page = Table.grid(padding=(0, 0, 1, 0))
    page.add_row(_headline(seen))
    for notice in seen.notices:
        page.add_row(Text(notice, style="yellow"))
    page.add_row(_identities(seen))
    if seen.HasField("memory"):
        page.add_row(_memory(seen.memory))
    for one in seen.identities:
        if one.message:
            text = f"{one.spiffe_id}: {one.failed_attempts} failed: {one.message} [{one.reason}]"
            page.add_row(Text(text, style="red"))
    return page


def _headline(seen: agent_pb2.Status) -> Text:
    state = "draining" if seen.draining else "ready" if seen.ready else "not ready"
    style = "green" if state == "ready" else "red"
    roots = ", ".join(f"{one.trust_domain} {len(one.roots)}" for one in seen.bundles) or "none"
    return Text.assemble(
        (state, style),
        f"  {seen.trust_domain}  pid {seen.pid}  version {seen.version}  ",
        f"authority {seen.authority}  roots {roots}",
    )


def _memory(memory: agent_pb2.Memory) -> Text:
    parts = [
        ("out of dumps", memory.no_dumps),
        ("locked", memory.locked),
        ("overwritten when freed", memory.wiped),
    ]
    line = Text("memory: ")
    for number, (name, one) in enumerate(parts):
        state = "yes" if one.in_force else f"no ({one.why_not})"
        line.append(f"{', ' if number else ''}{name}: ")
        line.append(state, style="green" if one.in_force else "yellow")
    return line


def _identities(seen: agent_pb2.Status) -> Table:
    now = seen.now.ToDatetime(UTC)
    streams: dict[str, int] = {}
    names: dict[str, list[str]] = {}
    for workload in seen.workloads:
        streams[workload.spiffe_id] = streams.get(workload.spiffe_id, 0) + workload.streams
        names.setdefault(workload.spiffe_id, []).append(workload.name)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("WORKLOAD", "SPIFFE ID", "STATE", "SERIAL", "EXPIRES", "RENEWAL"):
        table.add_column(title, overflow="fold")
    for title in ("ROTATIONS", "STREAMS"):
        table.add_column(title, justify="right")
    for one in seen.identities:
        table.add_row(
            ", ".join(names.get(one.spiffe_id, [])),
            one.spiffe_id,
            Text(one.condition, style=_STYLES.get(one.condition, "")),
            one.serial[:16],
            _until(one.not_after, now) if one.HasField("not_after") else "",
            _until(one.renew_at, now) if one.HasField("renew_at") else "",
            str(one.rotations),
            str(streams.get(one.spiffe_id, 0)),
        )
    return table


def _until(moment: Timestamp, now: datetime) -> str:
    """``12 s``, ``5 min``, ``3.2 h`` from now on; ``over`` where it has passed."""
    seconds = (moment.ToDatetime(UTC) - now).total_seconds()
    if seconds <= 0:
        return "over"
    for unit, size in (("d", 172_800.0), ("h", 7_200.0), ("min", 120.0)):
        if seconds >= size:
            return f"{seconds / {'d': 86_400.0, 'h': 3_600.0, 'min': 60.0}[unit]:.1f} {unit}"
    return f"{seconds:.0f} s"
