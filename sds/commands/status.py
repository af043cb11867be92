"""Runs ``sds status``, which shows what an agent does, as its admin socket reports it.

Owns the view in text. Invariants: ``--output json`` is one JSON object, the message
``sds.agent.v1.Status`` with the field names of its file; lines are never folded and end with the
SPIFFE ID, so that they can be copied, cut and searched. The view of ``--watch`` fits the terminal:
each identity takes one line, the worst identities come first, and errors are always in view.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import grpc
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sds._proto.sds.agent.v1 import agent_pb2
from sds.agent.admin import SERVICE
from sds.commands.agent_socket import CHANNEL_OPTIONS, dialled, other_socket
from sds.commands.json_output import plain
from sds.commands.options import NamedPath, output
from sds.errors import ConfigurationError, SocketError
from sds.printable import printable

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from types import FrameType

    from google.protobuf.timestamp_pb2 import Timestamp

_ANSWER_SECONDS: Final = 5.0
_WATCH_SECONDS: Final = 1.0
_STYLES: Final = {"valid": "green", "waiting": "yellow", "refused": "red"}
_AUTHORIZATIONS: Final = ("authorization", "authorization-tcp")
_NAMES: Final = 3
"""The most Envoys that one line names."""
_TITLES: Final = ("STATE", "EXPIRES", "RENEWAL", "ROTATIONS", "STREAMS", "SERIAL", "WORKLOAD")
_MAX_KINDS: Final = 10
"""The most kinds of errors that are shown."""
_MAX_OWNERS: Final = 8
_SERIAL_CHARACTERS: Final = 16
_WIDE: Final = 120
"""The columns from which a watching terminal shows serials and workloads."""


@click.command("status")
@click.option(
    "--socket",
    "path",
    type=NamedPath(path_type=Path),
    help="The agent's admin socket (RUN_DIR/admin.sock).",
)
@click.option(
    "--run-dir",
    type=NamedPath(path_type=Path),
    help="Instead of --socket: the agent's run directory.",
)
@click.option("--watch", is_flag=True, help="Show it again every second, until Ctrl-C.")
@output("table", "json")
def status(path: Path | None, run_dir: Path | None, *, watch: bool, output: str) -> None:
    """Show identities, expiry, rotations and errors of a running agent.

    Ends with status 1 if the agent is not ready, and says why.
    """
    if (path is None) == (run_dir is None):
        raise ConfigurationError("give --socket or --run-dir", advice="one of them, not both")
    socket = path if path is not None else Path(run_dir or "") / "admin.sock"
    with grpc.insecure_channel(dialled(socket), options=CHANNEL_OPTIONS) as channel:
        if watch:
            with _until_interrupted() as interrupted:
                _watch(channel, socket, output, interrupted)
            return
        seen = _ask(channel, socket)
        _show(seen, output)
    if not seen.ready:
        raise SystemExit(1)


@contextlib.contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; the second one interrupts as usual.

    KeyboardInterrupt does not help here: gRPC drops it if it is raised while a call is cleaned up.
    """
    interrupted = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _watch(channel: grpc.Channel, socket: Path, output: str, interrupted: threading.Event) -> None:
    """Show the status again and again; on a terminal in the same place."""
    if output == "json" or not sys.stdout.isatty():
        _show(_ask(channel, socket), output)
        while not interrupted.wait(_WATCH_SECONDS):
            _show(_ask(channel, socket), output)
        return
    console = Console()

    def drawn() -> Group:
        return Group(*screen(_ask(channel, socket), width=console.width, height=console.height - 1))

    with Live(drawn(), console=console, auto_refresh=False) as live:
        while not interrupted.wait(_WATCH_SECONDS):
            live.update(drawn(), refresh=True)


def _show(seen: agent_pb2.Status, output: str) -> None:
    if output == "json":
        click.echo(json.dumps(plain(seen)))
        return
    console = Console()
    for line in lines(seen):
        console.print(line, soft_wrap=True)  # a terminal breaks long lines itself


def _ask(channel: grpc.Channel, socket: Path) -> agent_pb2.Status:
    call = channel.unary_unary(
        f"/{SERVICE}/GetStatus",
        request_serializer=agent_pb2.GetStatusRequest.SerializeToString,
        response_deserializer=agent_pb2.Status.FromString,
    )
    try:
        answer: agent_pb2.Status = call(agent_pb2.GetStatusRequest(), timeout=_ANSWER_SECONDS)
    except grpc.RpcError as error:
        if other := other_socket(socket, error, wanted="the agent's admin socket"):
            raise other from error
        details = getattr(error, "details", error.__str__)()
        raise SocketError(
            f"no agent answers on {socket}: {details}",
            advice="check that the agent runs and that this is its run directory; only the agent's "
            "own user may connect",
        ) from error
    return answer


def screen(seen: agent_pb2.Status, *, width: int, height: int) -> list[Text]:
    """Return the status in at most ``height`` lines of at most ``width`` cells.

    Cuts first the owners of connections, memory and authorization, then healthy identities. Errors
    and lacks stay.
    """
    above, errors = list(_facts(seen)), list(_errors(seen.identities))
    urgent = [*above, Text(), *_spaced(errors)]
    head, *rows = _table(seen, width=width)
    room = max(1, height - len(urgent) - 1)
    shown = rows[:room]
    if len(rows) > room:
        shown = rows[: room - 1]
        shown.append(
            Text(f"… {len(rows) - len(shown)} more identities: a higher terminal shows more")
        )
    drawn = [*above, Text(), head, *shown, *_spaced(errors)]
    for part in (_authorizations(seen), _owners(seen), _memory_lines(seen)):
        more = _spaced(list(part))
        if len(drawn) + len(more) <= height:
            drawn += more
    return [_cut(_safe(line), width) for line in drawn[:height]]


def _safe(line: Text) -> Text:
    """Return the line without what a client may have written to control the terminal."""
    text = printable(line.plain)
    return line if text == line.plain else Text(text, style=line.style)


def _spaced(found: list[Text]) -> list[Text]:
    """Return the lines after an empty line, if there are any."""
    return [Text(), *found] if found else []


def _cut(line: Text, width: int) -> Text:
    """Shorten a line in its middle, because names and causes differ at their end."""
    if line.cell_len <= width:
        return line
    keep = width * 3 // 5
    return Text.assemble(line[:keep], "…", line[len(line) - (width - keep - 1) :])


def lines(seen: agent_pb2.Status) -> Iterator[Text]:
    """Return the status in lines for people."""
    parts = (_authorizations(seen), _owners(seen), _memory_lines(seen), _errors(seen.identities))
    spaced = itertools.chain.from_iterable(_spaced(list(part)) for part in parts)
    yield from map(_safe, itertools.chain(_facts(seen), [Text()], _table(seen), spaced))


def _facts(seen: agent_pb2.Status) -> Iterator[Text]:
    """Return the facts about the whole agent."""
    yield _headline(seen)
    if seen.HasField("policy"):
        yield _policy(seen)
    for sentence in seen.lacking:
        yield Text(f"not ready: {sentence}", style="red")
    for notice in seen.notices:
        yield Text(notice, style="yellow")
    if seen.HasField("policy") and seen.policy.problem:
        yield Text(f"policy refused: {seen.policy.problem}", style="yellow")


def _headline(seen: agent_pb2.Status) -> Text:
    state = "draining" if seen.draining else "ready" if seen.ready else "not ready"
    style = "green" if state == "ready" else "red"
    roots = ", ".join(f"{one.trust_domain} {len(one.roots)}" for one in seen.bundles) or "none"
    return Text.assemble(
        (state, style),
        f"  {seen.trust_domain}  pid {seen.pid}  version {seen.version}  ",
        f"authority {seen.authority}  roots {roots}",
    )


def _memory_lines(seen: agent_pb2.Status) -> Iterator[Text]:
    if seen.HasField("memory"):
        yield _memory(seen.memory)


def _memory(memory: agent_pb2.Memory) -> Text:
    parts = [
        ("out of dumps", memory.no_dumps),
        ("out of swap", memory.locked),
        ("overwritten when freed", memory.wiped),
    ]
    line = Text("memory: ")
    for number, (name, one) in enumerate(parts):
        state = "yes" if one.in_force else f"no ({one.why_not})"
        line.append(f"{', ' if number else ''}{name}: ")
        line.append(state, style="green" if one.in_force else "yellow")
    return line


def _owners(seen: agent_pb2.Status) -> Iterator[Text]:
    """Return who uses the most of its budget, and who exceeded it."""
    if seen.owners:
        most = max(seen.owners, key=lambda one: one.held_bytes)
        yield Text(f"owners of connections: the most memory: {most.name}: {_usage(most)}")
        if seen.strangers.connections:
            yield Text(f"  strangers together: {_usage(seen.strangers)}")
    for one in itertools.islice((one for one in seen.owners if one.exceeded), _MAX_OWNERS):
        limits = ", ".join(f"{limit} {times}x" for limit, times in sorted(one.exceeded.items()))
        yield Text(f"  {one.name} exceeded its budget: {limits}; {_usage(one)}", style="yellow")


def _usage(one: agent_pb2.Owner) -> str:
    mebibytes = one.held_bytes / (1 << 20)
    return f"{one.connections} connections, {one.streams} streams, {mebibytes:.1f} MiB"


def _policy(seen: agent_pb2.Status) -> Text:
    policy = seen.policy
    if not policy.HasField("not_after"):
        return Text("policy: none in force", style="red")
    end = f"{policy.not_after.ToDatetime(UTC):%Y-%m-%dT%H:%M:%SZ}"
    return Text(f"policy: epoch {policy.epoch} ({policy.digest[:12]}) in force until {end}")


def _authorizations(seen: agent_pb2.Status) -> Iterator[Text]:
    """Return which epoch the Envoys of each workload enforce, and which Envoys refused it."""
    found: dict[tuple[str, str, str, str], dict[str, None]] = {}
    for client in seen.clients:
        for one in client.subscriptions:
            if one.name.partition(":")[0] in _AUTHORIZATIONS:
                epoch = re.search(r"-epoch(\d+)-", one.version)
                of = epoch[1] if epoch is not None else ""
                key = (client.workload, of, one.state, one.message)
                found.setdefault(key, {})[client.node] = None
    for (workload, number, state, error), envoys in sorted(found.items()):
        words = f"epoch {number}" if number != "0" else "no policy in force, denies everything"
        yield Text(
            f"authorization: {workload}: {words}, {state} by {_some(envoys)}"
            + (f": {error}" if error else ""),
            style="" if state == "ACKed" and number != "0" else "yellow",
        )
        if number == "0" and not seen.HasField("policy"):
            yield Text(
                "  this agent has no `policy:`; make such an Envoy's bootstrap with "
                "--no-authorization, or give the agent a policy",
                style="yellow",
            )


def _some(names: Collection[str]) -> str:
    """Return the first names, and how many more there are."""
    first = ", ".join(itertools.islice(names, _NAMES))
    return f"{first} and {len(names) - _NAMES} more" if len(names) > _NAMES else first


def _table(seen: agent_pb2.Status, *, width: int | None = None) -> Iterator[Text]:
    """Return the titles, then one line for each identity; the SPIFFE ID is last.

    Args:
        seen: the status to show.
        width: the width of a terminal that may not show everything: the worst identities come
            first, and a narrow terminal shows no serials and workloads.
    """
    now = seen.now.ToDatetime(UTC)
    streams: dict[str, int] = {}
    names: dict[str, dict[str, None]] = {}
    for workload in seen.workloads:
        for spiffe_id in workload.spiffe_ids:
            streams[spiffe_id] = streams.get(spiffe_id, 0) + workload.streams
            names.setdefault(spiffe_id, {})[workload.name] = None
    identities = list(seen.identities)
    if width is not None:
        worst = list(_STYLES)[::-1]
        identities.sort(
            key=lambda one: (
                worst.index(one.condition) if one.condition in worst else -1,
                one.not_after.ToNanoseconds(),
                one.spiffe_id,
            )
        )
    rows = [
        (
            one.condition,
            _until(one.not_after, now) if one.HasField("not_after") else "-",
            _renewal(one, now),
            str(one.rotations),
            str(streams.get(one.spiffe_id, 0)),
            one.serial[:_SERIAL_CHARACTERS] or "-",
            _first(names.get(one.spiffe_id, {})),
        )
        for one in identities
    ]
    columns = len(_TITLES) - (2 if width is not None and width < _WIDE else 0)
    widths = [max(map(len, column)) for column in zip(_TITLES, *rows, strict=True)][:columns]
    yield Text(_cells(_TITLES, widths) + "SPIFFE ID", style="bold")
    for row, one in zip(rows, identities, strict=True):
        line = Text(_cells(row, widths) + one.spiffe_id)
        line.stylize(_STYLES.get(one.condition, ""), 0, len(one.condition))
        yield line


def _cells(row: Iterable[str], widths: Iterable[int]) -> str:
    return "".join(f"{cell:<{width}}  " for cell, width in zip(row, widths, strict=False))


def _first(names: Iterable[str]) -> str:
    """Return the first name, and how many more there are."""
    first, *more = sorted(names) or ["-"]
    return f"{first} +{len(more)}" if more else first


def _errors(identities: Iterable[agent_pb2.Identity]) -> Iterator[Text]:
    """Return each error once, with the number of identities that have it."""
    found: dict[tuple[str, str], list[agent_pb2.Identity]] = {}
    for one in identities:
        if one.message:
            words = one.message.replace(one.spiffe_id, "SPIFFE ID")
            found.setdefault((one.reason, words), []).append(one)
    kinds = sorted(found.items(), key=lambda item: -len(item[1]))
    for (reason, words), those in kinds[:_MAX_KINDS]:
        attempts = max(one.failed_attempts for one in those)
        who = those[0].spiffe_id if len(those) == 1 else f"{len(those)} identities"
        # Once something changed that may cure it, they are counted anew, and the next one goes on.
        tries = f"{attempts or 'the last'} attempt{'s' if attempts > 1 else ''} failed"
        yield Text(f"{who}: {tries}: {words} [{reason}]", style="red")
    if len(kinds) > _MAX_KINDS:
        yield Text(f"{len(kinds) - _MAX_KINDS} more kinds of errors: --output json shows all")


def _renewal(one: agent_pb2.Identity, now: datetime) -> str:
    """Return when it is renewed: ``due`` after that time, ``at rest`` if nobody may have it now."""
    if one.at_rest:
        return "at rest"
    if not one.HasField("renew_at"):
        return "-"
    return _until(one.renew_at, now).replace("over", "due")


def _until(moment: Timestamp, now: datetime) -> str:
    """Return the time until a moment: ``12 s``, ``5.0 min``, ``3.2 h``; or ``over``."""
    seconds = (moment.ToDatetime(UTC) - now).total_seconds()
    if seconds <= 0:
        return "over"
    for unit, size in (("d", 172_800.0), ("h", 7_200.0), ("min", 120.0)):
        if seconds >= size:
            return f"{seconds / {'d': 86_400.0, 'h': 3_600.0, 'min': 60.0}[unit]:.1f} {unit}"
    return f"{seconds:.0f} s"
