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
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from typing import TYPE_CHECKING

from bench.rotation import row, rss_mb
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


class Soak:
    def __init__(self, node: Node, seconds: float, seed: int) -> None:
        self.node = node
        self.until = time.monotonic() + seconds
        self.random = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.samples: list[tuple[float, float, int]] = []
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
            files = len(os.listdir(f"/proc/{agent.pid}/fd"))  # noqa: PTH208  no disk behind it
            self.samples.append((time.monotonic() - begin, rss_mb(agent.pid), files))
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
    warm = [s for s in soak.samples if s[0] > _WARM_UP_SECONDS] or soak.samples[-2:]
    slope = statistics.linear_regression([s[0] for s in warm], [s[1] for s in warm]).slope * 3600
    files = {s[2] for s in warm}
    row("RSS of the agent at the end", f"{warm[-1][1]:.0f} MB")
    row("its slope after warm-up", f"{slope:+.1f} MB/h")
    row("its descriptors after warm-up", f"{min(files)} to {max(files)}")
    for failure in mesh.failures[:5]:
        print(failure)
    long = given.seconds > 5 * _WARM_UP_SECONDS
    return int(bool(mesh.failures) or (long and slope > _MOST_GROWTH_MB_PER_HOUR))


if __name__ == "__main__":
    sys.exit(main())
