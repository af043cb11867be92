"""One measurement: a crowd of connections from several processes, then rotations; the figures."""

from __future__ import annotations

import json
import math
import select
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.contestants import ROOT
from bench.process_figures import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.contestants import Server


@dataclass(frozen=True)
class Shape:
    """What a client asks: the size of its node, and whether each name has a stream of its own."""

    node_bytes: int
    stream_per_name: bool


@dataclass(frozen=True)
class Plan:
    """How a measurement goes; ``watch``: for rotations of a server that rotates by itself."""

    connections: int
    shape: Shape
    processes: int
    rotations: int
    settle: float
    watch: float
    patience: float


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def measure(server: Server, names: list[str], plan: Plan) -> dict[str, float]:
    """Connect, settle, rotate."""
    clients = _Clients(server.socket, names, plan)
    try:
        before = Sample.of(server.pid)
        dialled = time.time_ns()
        clients.tell()
        clients.expect("full")
        time.sleep(plan.settle)
        connected = Sample.of(server.pid)
        put = rotations(server, plan)
        rotated = Sample.of(server.pid)
        clients.tell()
        records = clients.records()
    finally:
        clients.end()
    first = [value for record in records for value in record["first_ms"]]
    waves: dict[str, list[int]] = defaultdict(list)
    for record in records:
        for content, arrivals in record["waves"].items():
            waves[content] += arrivals
    full = [wave for wave in waves.values() if len(wave) == plan.connections]
    lags = [
        (at - before_it) / 1e6 for wave in full for before_it in _last(put, wave) for at in wave
    ]
    pushes = sum(record["pushes"] for record in records)
    failed = plan.connections - len(first)
    for record in records:
        for why, count in record["failures"].items():
            print(f"generator: {why}: {count} connections", file=sys.stderr)
    count = plan.connections
    last = max(record["last_ns"] for record in records)
    return {
        "first secrets p50, ms": percentile(first, 0.5),
        "first secrets p99, ms": percentile(first, 0.99),
        "all have theirs, ms": (last - dialled) / 1e6,
        "connections without all secrets": failed,
        "calls refused, made again": sum(record["refused"] for record in records),
        "CPU per connection, ms": (connected.cpu - before.cpu) / count * 1e3,
        "memory per connection, KiB": (connected.rss - before.rss) / count,
        "descriptors per connection": (connected.descriptors - before.descriptors) / count,
        "memory before, RssAnon MiB": before.anonymous / 1024,
        "memory before, VmRSS MiB": before.rss / 1024,
        "rotations that reached all": len(full),
        "rotation, first to last arrival, ms": median((max(w) - min(w)) / 1e6 for w in full),
        "store to client p50, ms": percentile(lags, 0.5),
        "store to client p99, ms": percentile(lags, 0.99),
        "CPU per push, ms": (rotated.cpu - connected.cpu) / pushes * 1e3 if pushes else math.nan,
        "identical pushes": sum(record["identical"] for record in records),
        "unchanged secrets sent again": sum(record["unchanged"] for record in records),
        "generator, busiest process, cores": max(record["busy"] for record in records),
    }


def median(values: Any) -> float:
    """Of what there is; NaN of nothing."""
    found = [value for value in values if not math.isnan(value)]
    return statistics.median(found) if found else math.nan


def rotations(server: Server, plan: Plan) -> list[int]:
    """Rotate, or wait for a server that does so by itself; when new certificates were there."""
    put = []
    for _ in range(plan.rotations):
        if (at := server.rotate()) is None:
            time.sleep(plan.watch)
            break
        put.append(at)
        time.sleep(plan.settle)
    return put


def _last(put: list[int], wave: list[int]) -> list[int]:
    """The last moment of ``put`` before a wave, if there is one."""
    return [at for at in put if at <= min(wave)][-1:]


class _Clients:
    """The processes of the generator."""

    def __init__(self, socket: str, names: list[str], plan: Plan) -> None:
        self._patience = plan.patience
        self._processes = []
        for number in range(plan.processes):
            task = {
                "socket": socket,
                "names": names,
                "connections": len(range(number, plan.connections, plan.processes)),
                "node_bytes": plan.shape.node_bytes,
                "stream_per_name": plan.shape.stream_per_name,
            }
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "bench.load", json.dumps(task)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
        self.expect("ready")

    def tell(self) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def expect(self, word: str) -> None:
        deadline = time.monotonic() + self._patience
        for process in self._processes:
            left = max(0.0, deadline - time.monotonic())
            assert process.stdout is not None
            if not select.select([process.stdout], [], [], left)[0]:
                raise SystemExit(
                    f"a process of the generator did not say {word!r} in {self._patience} s: "
                    "the server does not answer everybody (more: --patience)"
                )
            assert process.stdout.readline().strip() == word

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(process.communicate()[0]) for process in self._processes]

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
