"""What others notice of an attack: time to a first secret, on the attacked socket and on another.

    python bench/attacks.py                  every attack of tests/support/hostile.py, a table
    python bench/attacks.py --attacks names rapid_reset --seconds 10

A whole agent serves two workloads. For each attack several processes attack the socket of one,
again and again, as the same user as everybody else, while one victim connects to each socket every
50 ms and asks for its secret. The table has the victims' latency, its ratio to that without an
attack, the agent's memory and its processor time, and says whether p99 stays under 250 ms (or three
times that without an attack). The load average tells how far to trust it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import select
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.process_figures import Sample
from tests.support.hostile import ATTACKS, attack
from tests.support.node import Node, short_folder
from tests.support.raw_client import STREAM, RawClient, discovery

PAUSE = 0.05
MOST_MS = 250.0
PATIENCE = 60.0


def ask(path: str) -> float:
    """Milliseconds from connecting to the secret."""
    began = time.perf_counter()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(path)
        client = RawClient(connection)
        client.call(STREAM, discovery("default"))
        client.read_until(b"PRIVATE KEY")
    return (time.perf_counter() - began) * 1e3


def be_victim(path: str, seconds: float) -> None:
    """Ask again and again; print the latencies."""
    end = time.monotonic() + seconds
    found: list[float] = []
    failed = 0
    while time.monotonic() < end:
        try:
            found.append(ask(path))
        except (OSError, AssertionError):
            failed += 1
        time.sleep(PAUSE)
    print(json.dumps({"ms": found, "failed": failed}))


def be_attacker(name: str, path: str, seconds: float, uid: int | None = None) -> None:
    """Attack again and again, as another user perhaps."""
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        attack(name, path)
        time.sleep(0.01)


def be_asker(port: int, seconds: float) -> None:
    """Ask for the metrics without end, many requests at a time, and read what comes."""
    end = time.monotonic() + seconds
    ask = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 1_000
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as one:
            one.settimeout(0)
            while time.monotonic() < end:
                readable, writable, _ = select.select([one], [one], [], 0.1)
                if readable and not one.recv(1 << 20):
                    break
                if writable:
                    one.send(ask)


async def process(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, __file__, *arguments, stdout=asyncio.subprocess.PIPE
    )


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class Measured:
    """One attack, or none."""

    def __init__(self, victims: list[dict[str, list[float] | int]]) -> None:
        self.p50: list[float] = []
        self.p99: list[float] = []
        self.failed = 0
        for victim in victims:
            latencies = victim["ms"]
            assert isinstance(latencies, list)
            self.p50.append(percentile(latencies, 0.5))
            self.p99.append(percentile(latencies, 0.99))
            failed = victim["failed"]
            assert isinstance(failed, int)
            self.failed += failed
        self.peak_mib = 0.0
        self.cpu_share = 0.0


async def measure(
    name: str | None, sockets: list[str], pid: int, given: argparse.Namespace
) -> Measured:
    seconds = str(given.seconds)
    before, began = Sample.of(pid), time.monotonic()
    attackers = [
        await process("--attack", name, sockets[0], seconds)
        for _ in range(given.processes)
        if name is not None
    ]
    await asyncio.sleep(0.5)
    victims = [await process("--victim", path, seconds) for path in sockets]
    waiting = asyncio.gather(*(one.communicate() for one in victims))
    peak = before.rss
    while not waiting.done():
        peak = max(peak, Sample.of(pid).rss)
        await asyncio.sleep(0.1)
    measured = Measured([json.loads(out) for out, _ in await waiting])
    measured.cpu_share = (Sample.of(pid).cpu - before.cpu) / (time.monotonic() - began)
    measured.peak_mib = peak / 1024
    for one in attackers:
        if one.returncode is None:
            one.terminate()
        await one.wait()
    return measured


async def run(given: argparse.Namespace) -> None:
    with short_folder() as folder:
        node = Node(folder, workloads=("web", "other"), lifetime="1h")
        async with node.authority(), node.agent() as agent:
            sockets = [str(node.socket("web")), str(node.socket("other"))]
            for path in sockets:
                ask(path)
            print(
                "| attack | same socket p50/p99, ms (p99 to none) |"
                " other socket p50/p99, ms (p99 to none) | failed |",
                end="",
            )
            print(" peak memory, MiB | cores | within |\n|---|---:|---:|---:|---:|---:|---|")
            bound = MOST_MS
            calm: list[float] = []
            for name in (None, *given.attacks):
                found = await measure(name, sockets, agent.pid, given)
                if name is None:
                    bound, calm = max(MOST_MS, 3 * max(found.p99)), found.p99
                within = max(found.p99) <= bound and not found.failed
                cells = [
                    f"{a:.1f}/{b:.1f} (x{b / c:.1f})"
                    for a, b, c in zip(found.p50, found.p99, calm, strict=True)
                ]
                print(
                    f"| {name or 'none'} | {cells[0]} | {cells[1]} | {found.failed} | "
                    f"{found.peak_mib:.0f} | {found.cpu_share:.2f} | {'yes' if within else 'NO'} |",
                    flush=True,
                )
                await asyncio.sleep(1)
    print(f"\nload average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each attack")
    parser.add_argument("--processes", type=int, default=2, help="that attack at the same time")
    parser.add_argument("--victim", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--attack", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--requests", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.victim:
        be_victim(given.victim[0], float(given.victim[1]))
    elif given.attack:
        name, path, seconds, *uid = given.attack
        be_attacker(name, path, float(seconds), int(uid[0]) if uid else None)
    elif given.requests:
        be_asker(int(given.requests[0]), float(given.requests[1]))
    else:
        asyncio.run(run(given))


if __name__ == "__main__":
    main()
