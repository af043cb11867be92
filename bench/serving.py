"""Serving under load: time to first secret, fan-out of a rotation, processor time and memory.

``python bench/serving.py`` measures our service beside a bare grpc.aio server (the floor of what
Python can do, see ``bench/sds_server.py``), in turns, with the same client, and prints one table
with the ratio. ``--socket PATH --pid PID`` puts any other SDS server in the place of the floor
(a SPIRE agent, say; name its secrets with ``--peer-names``), ``--agent PATH --agent-pid PID`` a
running ``sds agent`` in the place of our service (its rotations are then those of its lifetime).

The client is this script too: ``--clients`` processes share the connections, each connection a
channel of its own, with one stream for each name and a first request of ``--node-bytes``, as a
real Envoy sends them. Each process says how busy it was: above 90 % of a core the generator may be
the bottleneck, and the table says so. ``--sdsload PROGRAM`` (or SDSLOAD in the environment) names
an independent load client with the same columns, run after ours to check it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
METHOD = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
BUSY = 0.9


# --- the client ---------------------------------------------------------------------------------


def first_request(name: str, node_bytes: int) -> bytes:
    """As Envoy's: most of it is a list of extensions."""
    request = discovery_pb2.DiscoveryRequest(resource_names=[name], type_url=SECRET)
    request.node.id = "bench"
    request.node.cluster = "bench"
    request.node.user_agent_name = "envoy"
    number = 0
    size = request.node.ByteSize()
    while size < node_bytes:
        added = request.node.extensions.add(
            name=f"envoy.filters.http.padding_{number:04d}",
            category="envoy.filters.http",
            type_urls=[f"envoy.extensions.filters.http.padding.v3.Padding{number:04d}"],
        )
        size += added.ByteSize() + 3
        number += 1
    encoded: bytes = request.SerializeToString()
    return encoded


async def connection(
    arguments: argparse.Namespace, requests: dict[str, bytes], record: dict[str, Any]
) -> None:
    """One channel with one stream for each name; ACKs all, notes when each content came."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"unix:{arguments.socket}", options=options) as channel:
        missing = set(arguments.names)
        began = time.time_ns()

        async def stream(name: str) -> None:
            call: Any = channel.stream_stream(
                METHOD, request_serializer=None, response_deserializer=None
            )()
            await call.write(requests[name])
            have: bytes | None = None
            while (raw := await call.read()) is not grpc.aio.EOF:
                now = time.time_ns()
                response = discovery_pb2.DiscoveryResponse.FromString(raw)
                ack = discovery_pb2.DiscoveryRequest(
                    version_info=response.version_info,
                    resource_names=[name],
                    type_url=SECRET,
                    response_nonce=response.nonce,
                )
                await call.write(ack.SerializeToString())
                for packed in response.resources:
                    secret = secret_pb2.Secret.FromString(packed.value)
                    content = secret.tls_certificate.certificate_chain.inline_bytes or packed.value
                    if have is None:
                        missing.discard(name)
                        if not missing:
                            record["first_ms"].append((now - began) / 1e6)
                            record["last_ns"] = max(record["last_ns"], now)
                            print("full", flush=True)
                    elif content == have:
                        record["identical"] += 1
                    else:
                        record["pushes"].append((name, hash(content), now))
                    have = content

        await asyncio.gather(*(stream(name) for name in arguments.names))


async def client(arguments: argparse.Namespace) -> None:
    """One process of the generator: connects at ``go`` on stdin, ends at its end."""
    record: dict[str, Any] = {"first_ms": [], "pushes": [], "identical": 0, "last_ns": 0}
    requests = {name: first_request(name, arguments.node_bytes) for name in arguments.names}
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    began, used = time.monotonic(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    tasks = [
        asyncio.ensure_future(connection(arguments, requests, record))
        for _ in range(arguments.connections)
    ]
    await loop.run_in_executor(None, sys.stdin.readline)  # all are full: the busy span ends
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - used
    record["busy"] = spent / (time.monotonic() - began)
    await loop.run_in_executor(None, sys.stdin.readline)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps(record), flush=True)


# --- the server's process -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What /proc says of a process: seconds, KiB, KiB, descriptors."""

    cpu: float
    rss: int
    anonymous: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()

        def kib(name: str) -> int:
            return int(re.findall(rf"{name}:\s+(\d+)", status)[0])

        return cls(
            cpu=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            rss=kib("VmRSS"),
            anonymous=kib("RssAnon"),
            descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        )


@dataclass(frozen=True)
class Server:
    """Something to measure; ``rotate`` is None where it rotates by itself."""

    label: str
    socket: str
    pid: int
    process: subprocess.Popen[str] | None

    def rotate(self) -> int | None:
        """Make one rotation; the time (ns) at which the new SVID was in the store."""
        if self.process is None or self.process.stdout is None:
            return None
        os.kill(self.pid, signal.SIGUSR1)
        return int(self.process.stdout.readline())


@contextlib.contextmanager
def started(kind: str, folder: str) -> Iterator[Server]:
    """Our service or the floor, in a process of its own."""
    socket = f"{folder}/{kind}.sock"
    process = subprocess.Popen(
        [sys.executable, str(HERE / "sds_server.py"), kind, socket],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    try:
        yield Server(kind, socket, process.pid, process)
    finally:
        process.terminate()
        process.wait(10)
        Path(socket).unlink(missing_ok=True)


# --- one measurement ----------------------------------------------------------------------------


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def measure(
    server: Server, connections: int, names: list[str], given: argparse.Namespace
) -> dict[str, float]:
    """Connect, settle, rotate; the figures."""
    before = Sample.of(server.pid)
    share = [connections // given.clients] * given.clients
    share[0] += connections - sum(share)
    command = [sys.executable, __file__, "--client", "--socket", server.socket]
    command += ["--node-bytes", str(given.node_bytes)]
    clients = [
        subprocess.Popen(
            [*command, "--connections", str(count), "--names", *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for count in share
    ]
    streams = [(one, one.stdin, one.stdout) for one in clients]

    def tell() -> None:
        for _, writer, _ in streams:
            assert writer is not None
            writer.write("go\n")
            writer.flush()

    for _, _, reader in streams:
        assert reader is not None
        assert reader.readline().strip() == "ready"
    wall = time.time_ns()
    tell()
    for count, (_, _, reader) in zip(share, streams, strict=True):
        assert reader is not None
        for _ in range(count):
            assert reader.readline().strip() == "full"
    tell()
    time.sleep(given.settle)
    connected = Sample.of(server.pid)
    put = []
    for _ in range(given.rotations):
        if (at := server.rotate()) is not None:
            put.append(at)
        time.sleep(given.settle)
    rotated = Sample.of(server.pid)
    tell()
    records = []
    for process, _, reader in streams:
        assert reader is not None
        records.append(json.loads(reader.readline()))
        process.wait(30)
    first = [value for record in records for value in record["first_ms"]]
    arrivals: dict[tuple[str, int], list[int]] = defaultdict(list)
    order = sorted((at, name) for record in records for name, _, at in record["pushes"])
    for at, name in order:  # a wave: what came after the same put
        wave = sum(1 for when in put if when <= at)
        arrivals[name, wave].append(at)
    spreads = [(max(wave) - min(wave)) / 1e6 for wave in arrivals.values()]
    fan_out = [
        (at - put[number - 1]) / 1e6
        for (_, number), wave in arrivals.items()
        if number
        for at in wave
    ]
    pushes = sum(len(wave) for wave in arrivals.values())
    nan = float("nan")
    return {
        "first secret p50, ms": percentile(first, 0.5),
        "first secret p99, ms": percentile(first, 0.99),
        "all have theirs, ms": (max(record["last_ns"] for record in records) - wall) / 1e6,
        "CPU per connection, ms": (connected.cpu - before.cpu) / connections * 1e3,
        "memory per connection, KiB": (connected.rss - before.rss) / connections,
        "descriptors per connection": (connected.descriptors - before.descriptors) / connections,
        "memory before, VmRSS MiB": before.rss / 1024,
        "memory before, RssAnon MiB": before.anonymous / 1024,
        "rotation, first to last arrival, ms": statistics.median(spreads) if spreads else nan,
        "store to client p50, ms": percentile(fan_out, 0.5) if fan_out else nan,
        "store to client p99, ms": percentile(fan_out, 0.99) if fan_out else nan,
        "CPU per push, ms": (rotated.cpu - connected.cpu) / pushes * 1e3 if pushes else nan,
        "identical pushes": sum(record["identical"] for record in records),
        "generator busy (of a core)": max(record["busy"] for record in records),
    }


# --- the table ----------------------------------------------------------------------------------


@contextlib.contextmanager
def contestants(given: argparse.Namespace, folder: str) -> Iterator[tuple[Server, Server]]:
    with contextlib.ExitStack() as stack:
        ours = (
            Server("sds agent", given.agent, given.agent_pid, None)
            if given.agent
            else stack.enter_context(started("ours", folder))
        )
        peer = (
            Server("peer", given.socket, given.pid, None)
            if given.socket
            else stack.enter_context(started("prototype", folder))
        )
        yield ours, peer


def compare(given: argparse.Namespace) -> None:
    """Print the table: medians of ``--runs`` runs in turns, each with fresh servers."""
    results: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    labels: list[str] = []
    for _ in range(given.runs):
        with tempfile.TemporaryDirectory() as folder, contestants(given, folder) as (ours, peer):
            labels = [ours.label, peer.label]
            for server, names in ((ours, given.names), (peer, given.peer_names or given.names)):
                for name, value in measure(server, given.connections, names, given).items():
                    results[server.label][name].append(value)
            if given.sdsload:
                check(given, ours)
    print(
        f"{given.connections} connections, names {', '.join(given.names)}, first requests of "
        f"{given.node_bytes} bytes, medians of {given.runs} run(s); load average "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    )
    print(f"| {'':36} | {labels[0]:>10} | {labels[1]:>10} | ratio |")
    print(f"|{'-' * 38}|{'-' * 12}|{'-' * 12}|{'-' * 7}|")
    for name in results[labels[0]]:
        left, right = (statistics.median(results[label][name]) for label in labels)
        ratio = f"{left / right:5.2f}" if right else "    -"
        print(f"| {name:36} | {left:10.2f} | {right:10.2f} | {ratio} |")
    busy = max(max(results[label]["generator busy (of a core)"]) for label in labels)
    if busy > BUSY:
        print(f"The generator was busy to {busy:.0%} of a core: times may be its own.")


def check(given: argparse.Namespace, server: Server) -> None:
    """Run the independent load client on the same server."""
    command = [given.sdsload, "--socket", server.socket, "--n", str(given.connections)]
    command += ["--names", ",".join(given.names), "--one-request-per-name"]
    command += ["--node-bytes", str(given.node_bytes), "--pid", str(server.pid)]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    print(
        f"independent client: p50 {answer['connect_ms']['p50']:.0f} ms, "
        f"p99 {answer['connect_ms']['p99']:.0f} ms, "
        f"CPU per connection {answer['cpu_connect_ms_per_conn']:.2f} ms"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=250)
    parser.add_argument("--names", nargs="+", default=["default", "ROOTCA"])
    parser.add_argument("--node-bytes", type=int, default=61_000)
    parser.add_argument("--clients", type=int, default=2, help="processes of the generator")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rotations", type=int, default=3)
    parser.add_argument("--settle", type=float, default=2.5, help="seconds between the steps")
    parser.add_argument("--socket", help="another SDS server to measure beside ours")
    parser.add_argument("--pid", type=int, help="its process")
    parser.add_argument("--peer-names", nargs="+", help="its names, where they differ")
    parser.add_argument("--agent", help="socket of a running sds agent to measure as ours")
    parser.add_argument("--agent-pid", type=int, help="its process")
    parser.add_argument("--sdsload", default=os.environ.get("SDSLOAD"), help="independent client")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        asyncio.run(client(given))
    else:
        compare(given)


if __name__ == "__main__":
    main()
