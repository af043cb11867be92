"""Rotation measured on real processes: `sds ca`, `sds agent`, and clients in this one.

    python bench/rotation.py cold --identities 250      start to all served
    python bench/rotation.py lag --connections 250      authority's answer to the last client
    python bench/rotation.py steady --identities 250 --seconds 600 --lifetime 60

Prints one table line a figure. Run it on an idle machine; `--runs` repeats cold and lag.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import json_format

import sds
from bench.process_figures import Sample
from sds._proto.sds.agent.v1 import agent_pb2
from sds.agent.admin import SERVICE
from tests.support.node import Node, short_folder
from tests.support.xds_client import Sotw, channel, fetch, secrets

if TYPE_CHECKING:
    from tests.support.process import Process

_JSON = ("--log-format", "json")


def row(name: str, value: str) -> None:
    print(f"| {name:<58} | {value:>22} |", flush=True)


def names(count: int) -> list[str]:
    return [f"w{number}" for number in range(count)]


async def status(node: Node) -> agent_pb2.Status:
    async with grpc.aio.insecure_channel(f"unix:{node.admin}") as connection:
        call: Any = connection.unary_unary(
            f"/{SERVICE}/GetStatus", response_deserializer=agent_pb2.Status.FromString
        )
        answer: agent_pb2.Status = await call(b"")
        return answer


def events(agent: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in agent.stderr if line.startswith("{")]


def moment(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def as_installed() -> None:
    """As where it is installed: bytecode, and run directories on a tmpfs, as ``/run`` is one."""
    assert compileall.compile_dir(Path(sds.__file__).parent, quiet=1)
    if os.access("/dev/shm", os.W_OK):
        tempfile.tempdir = "/dev/shm"


async def cold(identities: int, runs: int) -> None:
    took, cpu = [], []
    for _ in range(runs):
        with short_folder() as folder:
            node = Node(folder, workloads=names(identities))
            async with node.authority():
                before = time.time()
                async with node.agent(ready=False, arguments=_JSON) as agent:
                    await agent.line('"ready": ?true')
                    ready = next(moment(e) for e in events(agent) if e.get("ready") is True)
                    took.append(ready - before)
                    cpu.append(Sample.of(agent.pid).cpu)
                    seen = await status(node)
                    assert all(one.condition == "valid" for one in seen.identities)
                    async with channel(f"unix:{node.socket('w0')}") as connection:
                        assert secrets(await fetch(connection, "default"))
                    rss = Sample.of(agent.pid).rss / 1024
    row(
        f"cold start of {identities}: exec to all served, median of {runs}",
        f"{statistics.median(took):.2f} s",
    )
    row(f"cold start of {identities}: best", f"{min(took):.2f} s")
    row("of it CPU of the agent, median", f"{statistics.median(cpu):.2f} s")
    row("RSS", f"{rss:.0f} MB")


async def lag(connections: int, runs: int) -> None:
    with short_folder() as folder:
        node = Node(folder, workloads=["w0"], lifetime="6s")
        async with node.authority(), node.agent():
            opened = [channel(f"unix:{node.socket('w0')}") for _ in range(connections)]
            streams = []
            for one in opened:
                stream = Sotw(await one.__aenter__())
                await stream.get("default")
                streams.append(stream)
            lags = []
            for _ in range(runs):

                async def take(stream: Sotw) -> float:
                    response = await stream.next()
                    at = time.time()
                    await stream.ack(response, "default")
                    return at

                arrivals = await asyncio.gather(*(take(stream) for stream in streams))
                seen = await status(node)
                received = seen.identities[0].received_at.ToMicroseconds() / 1e6
                lags.append((max(arrivals) - received) * 1000)
            for stream in streams:
                stream.cancel()
            for one in opened:
                await one.__aexit__(None, None, None)
    lags.sort()
    row(
        f"answer to the last of {connections} connections, median of {runs}",
        f"{statistics.median(lags):.0f} ms",
    )
    row("the same, slowest", f"{lags[-1]:.0f} ms")


async def steady(identities: int, seconds: float, lifetime: int) -> None:
    with short_folder() as folder:
        node = Node(folder, workloads=names(identities), lifetime=f"{lifetime}s")
        async with node.authority(), node.agent(ready=False, arguments=_JSON) as agent:
            await agent.line('"ready": ?true')
            begin_cpu, begin = Sample.of(agent.pid).cpu, time.monotonic()
            begin_rss = Sample.of(agent.pid).rss / 1024
            await asyncio.sleep(seconds)
            cpu = (Sample.of(agent.pid).cpu - begin_cpu) / (time.monotonic() - begin)
            ends: dict[str, float] = {}
            left, renewals, failures = [], 0, 0
            for event in events(agent):
                if "serial" in event and "not_after" in event:
                    at, name = moment(event), event["spiffe_id"]
                    if name in ends:
                        renewals += 1
                        left.append((ends[name] - at) / lifetime)
                    ends[name] = datetime.fromisoformat(event["not_after"]).timestamp()
                elif "attempt" in event:
                    failures += 1
            seen = json_format.MessageToDict(await status(node))
            assert seen["ready"]
            row(f"{identities} identities, {lifetime} s certificates, for", f"{seconds:.0f} s")
            row("renewals", str(renewals))
            row("failed attempts", str(failures))
            row(
                "least life left at a renewal",
                f"{100 * min(left):.0f} %" if left else "none was due",
            )
            row("CPU of the agent", f"{100 * cpu:.1f} % of a core")
            row(
                "RSS at the start, at the end",
                f"{begin_rss:.0f}, {Sample.of(agent.pid).rss / 1024:.0f} MB",
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["cold", "lag", "steady"])
    parser.add_argument("--identities", type=int, default=250)
    parser.add_argument("--connections", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--lifetime", type=int, default=60)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    as_installed()
    if given.what == "cold":
        asyncio.run(cold(given.identities, given.runs))
    elif given.what == "lag":
        asyncio.run(lag(given.connections, given.runs))
    else:
        asyncio.run(steady(given.identities, given.seconds, given.lifetime))


if __name__ == "__main__":
    main()
