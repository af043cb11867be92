"""The long form of the fault suite: faults drawn at random, for as long as is asked for.

    python bench/soak.py --seconds 600

Two real Envoys make a full handshake for every request while the authority is killed, stopped and
cut off, and the agent killed and stopped. Ends with status 1 where a request failed, or memory or
descriptors of the agent grew.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from typing import TYPE_CHECKING, NamedTuple

from bench.process_figures import Sample as Memory
from bench.rotation import row
from tests.support.mesh import Mesh, running_mesh
from tests.support.node import Node, short_folder
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from tests.support.process import Process

LIFETIME = 20
KINDS = (
    *("blackhole", "refuse", "corrupt", "cut", "delay"),
    *("stop ca", "stop agent", "kill ca"),
)
_WARM_UP_SECONDS = 60.0
_MOST_GROWTH_MB_PER_HOUR = 30.0


class Sample(NamedTuple):
    """The agent at one moment: seconds, MB, MB, descriptors."""

    at: float
    rss: float
    anonymous: float
    files: int


def per_hour(samples: list[Sample], what: str) -> float:
    """How fast something grows."""
    values = [getattr(one, what) for one in samples]
    return statistics.linear_regression([one.at for one in samples], values).slope * 3600


class Soak:
    def __init__(self, node: Node, seconds: float, seed: int) -> None:
        self.node = node
        self.until = time.monotonic() + seconds
        self.random = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.authority: Process | None = None

    async def run(self, folder: Path) -> Mesh:
        async with Proxy(self.node.port).running() as proxy, contextlib.AsyncExitStack() as stack:
            self.authority = await stack.enter_async_context(self.node.authority())
            addresses = {"addresses": [f"127.0.0.1:{proxy.port}"]}
            agent = await stack.enter_async_context(self.node.agent(authority=addresses))
            async with running_mesh(self.node, folder) as mesh:
                sampling = asyncio.create_task(self.sample(agent))
                while time.monotonic() < self.until:
                    await self.fault(proxy, agent, stack)
                    # A fault at a time, and a renewal between two.
                    await mesh.rotations(1, seconds=120)
                sampling.cancel()
                await mesh.no_resumption()
                return mesh

    async def fault(self, proxy: Proxy, agent: Process, stack: contextlib.AsyncExitStack) -> None:
        kinds = [
            "blackhole",
            "refuse",
            "corrupt",
            "cut",
            "delay",
            "stop ca",
            "stop agent",
            "kill ca",
        ]
        kind = self.random.choice(kinds)
        self.faults[kind] += 1
        span = self.random.uniform(0.05, 0.4) * LIFETIME
        assert self.authority is not None
        match kind:
            case "blackhole":
                proxy.blackhole = True
            case "refuse":
                proxy.refuse = True
                proxy.reset()
            case "corrupt":
                proxy.corrupt = True
            case "cut":
                proxy.cut_after = self.random.randrange(10_000)
                proxy.reset()
            case "delay":
                proxy.delay = self.random.uniform(0.01, 0.3)
            case "stop ca" | "stop agent":
                process = self.authority if kind == "stop ca" else agent
                process.signal(signal.SIGSTOP)
                await asyncio.sleep(span)
                process.signal(signal.SIGCONT)
                return
            case "kill ca":
                await self.authority.kill()
                await asyncio.sleep(span)
                self.authority = await stack.enter_async_context(self.node.authority())
                return
        await asyncio.sleep(span)
        proxy.heal()

    async def sample(self, agent: Process) -> None:
        begin = time.monotonic()
        while True:
            memory = Memory.of(agent.pid)
            at = time.monotonic() - begin
            self.samples.append(
                Sample(at, memory.rss / 1024, memory.anonymous / 1024, memory.descriptors)
            )
            await asyncio.sleep(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    with short_folder() as folder, tempfile.TemporaryDirectory() as logs:
        node = Node(folder, workloads=("client", "server"), lifetime=f"{LIFETIME}s")
        soak = Soak(node, given.seconds, given.seed)
        mesh = asyncio.run(soak.run(Path(logs)))
    row("seed", str(given.seed))
    row("faults", str(soak.faults.total()))
    for kind, count in sorted(soak.faults.items()):
        row(f"  {kind}", str(count))
    row("requests, each a full handshake", str(mesh.requests))
    row("failed", str(len(mesh.failures)))
    row("certificates seen in use", str(sum(map(len, mesh.seen.values()))))
    warm = [s for s in soak.samples if s.at > _WARM_UP_SECONDS] or soak.samples[-2:]
    half = warm[len(warm) // 2 :] if len(warm) > 3 else warm
    slope = per_hour(warm, "rss")
    files = {one.files for one in warm}
    row("RSS of the agent at the end", f"{warm[-1].rss:.0f} MB")
    row("its slope after warm-up", f"{slope:+.1f} MB/h")
    row("its anonymous memory at the end", f"{warm[-1].anonymous:.1f} MB")
    row("the slope of that after warm-up", f"{per_hour(warm, 'anonymous'):+.1f} MB/h")
    row("the same, second half", f"{per_hour(half, 'anonymous'):+.1f} MB/h")
    row("its descriptors after warm-up", f"{min(files)} to {max(files)}")
    for failure in mesh.failures[:5]:
        print(failure)
    long = given.seconds > 5 * _WARM_UP_SECONDS
    return int(bool(mesh.failures) or (long and slope > _MOST_GROWTH_MB_PER_HOUR))


if __name__ == "__main__":
    sys.exit(main())
