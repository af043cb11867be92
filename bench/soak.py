"""The long form of the fault suite: faults drawn at random, for as long as is asked for.

    python bench/soak.py --seconds 600

Two real Envoys make a full handshake for every request while the authority is killed, stopped and
cut off, the agent is stopped, and hostile clients do what they can: every attack of
``tests/support/hostile.py`` on the node-wide socket, as a user with an identity and as one without,
floods of connections, of requests to the metrics, and of strangers on the authority's port. Agent
and authority are in control groups of 256 MiB that kill. Ends with status 1 where a request failed,
the kernel killed, a task had to start again, or memory or descriptors of the agent grew.
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
from tests.support.cgroups import MemoryGroup, memory_group
from tests.support.hostile import ATTACKS
from tests.support.mesh import Mesh, running_mesh
from tests.support.node import TRUST_DOMAIN, Node, free_port, short_folder
from tests.support.process import running
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from tests.support.process import Process

LIFETIME = 20.0
"""Seconds of certificates; more on a machine where an authority needs long to start."""
_STARTS = 6
"""So many starts of an authority must fit into a lifetime: a start is part of its outage."""
KINDS = (
    *("blackhole", "refuse", "corrupt", "cut", "delay"),
    *("stop ca", "stop agent", "kill ca"),
)
SUPPORT = Path(__file__).resolve().parents[1] / "tests" / "support"
ATTACKER = Path(__file__).with_name("attacks.py")
KNOWN, STRANGER = 4242, 4343
"""Users: one has an identity, one has none."""
DOORS = ("close", "preface", "silent", "exit", "exec")
AUTHORITY = ("silent", "half", "drip", "tls", "preface", "pings", "call", "unknown", "flood")
HOSTILE = (
    *(f"attack {name} as {uid}" for name in ATTACKS for uid in (KNOWN, STRANGER)),
    *(f"door {kind}" for kind in DOORS),
    *(f"authority {kind}" for kind in AUTHORITY),
    "metrics",
)
BOUND = 256 * 1024 * 1024
_WARM_UP_SECONDS = 60.0
_HOSTILE_SECONDS = 5.0
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
    def __init__(
        self,
        node: Node,
        seconds: float,
        seed: int,
        groups: tuple[MemoryGroup, MemoryGroup],
        lifetime: float,
    ) -> None:
        self.node = node
        self.lifetime = lifetime
        self.groups = groups
        self.metrics = free_port()
        self.began_again = 0
        self.failed_in: Counter[str] = Counter()
        """Failed requests, by what was going on."""
        self.authority_starts: list[float] = []
        """Seconds until an authority that was started again could sign."""
        self.seconds = seconds
        self.random = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.authority: Process | None = None

    async def run(self, folder: Path) -> Mesh:
        async with Proxy(self.node.port).running() as proxy, contextlib.AsyncExitStack() as stack:
            self.authority = await self.new_authority(stack)
            settings = self.node.agent_settings()
            known = {
                "name": "known",
                "match": {"unix:uid": str(KNOWN)},
                "spiffe_id": f"spiffe://{TRUST_DOMAIN}/known",
                "lifetime": self.node.lifetime,
            }
            agent = await stack.enter_async_context(
                self.node.agent(
                    prefix=self.groups[1].prefix,
                    authority={"addresses": [f"127.0.0.1:{proxy.port}"]},
                    node={"attestors": ["unix"]},
                    metrics={"listen": f"127.0.0.1:{self.metrics}"},
                    workloads=[*settings["workloads"], known],
                )
            )
            async with running_mesh(self.node, folder) as mesh:
                sampling = asyncio.create_task(self.sample(agent))
                until = time.monotonic() + self.seconds
                while time.monotonic() < until:
                    before = len(mesh.failures)
                    hostile = await self.hostile()
                    between = len(mesh.failures)
                    fault = await self.fault(proxy, agent, stack)
                    # A fault at a time, and a renewal between two.
                    await mesh.rotations(1, seconds=120 + 2 * self.lifetime)
                    if between > before:
                        self.failed_in[", ".join(hostile)] += between - before
                    if len(mesh.failures) > between:
                        after = f"{fault}, after {', '.join(hostile)}"
                        self.failed_in[after] += len(mesh.failures) - between
                sampling.cancel()
                await mesh.no_resumption()
                assert agent.returncode is None
                lines = [line for line in agent.stderr if "it starts again" in line]
                self.began_again = len(lines)
                return mesh

    async def new_authority(self, stack: contextlib.AsyncExitStack) -> Process:
        return await stack.enter_async_context(self.node.authority(prefix=self.groups[0].prefix))

    async def hostile(self) -> list[str]:
        """Several hostile clients at a time; which."""
        kinds = self.random.sample(HOSTILE, 4)
        async with contextlib.AsyncExitStack() as stack:
            for kind in kinds:
                self.faults[f"hostile: {kind}"] += 1
                await stack.enter_async_context(running(self.command(kind.split())))
            await asyncio.sleep(_HOSTILE_SECONDS)
        return kinds

    def command(self, kind: list[str]) -> list[str]:
        """What attacks in this way."""
        door = str(self.node.run_dir / "node" / "sds.sock")
        seconds = str(_HOSTILE_SECONDS)
        match kind:
            case ["attack", name, "as", uid]:
                return [sys.executable, str(ATTACKER), "--attack", name, door, seconds, uid]
            case ["door", name]:
                client = [sys.executable, "-S", str(SUPPORT / "hostile_client.py"), door, name]
                return [*client, "100000", str(STRANGER)]
            case ["authority", name]:
                client = [sys.executable, "-S", str(SUPPORT / "hostile_stranger.py")]
                return [*client, str(self.node.port), name, "500", seconds]
            case _:
                return [sys.executable, str(ATTACKER), "--requests", str(self.metrics), seconds]

    async def fault(self, proxy: Proxy, agent: Process, stack: contextlib.AsyncExitStack) -> str:
        """One fault, from its beginning to its end; which."""
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
        span = self.random.uniform(0.05, 0.4) * self.lifetime
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
                return kind
            case "kill ca":
                await self.authority.kill()
                await asyncio.sleep(span / 2)
                began = time.monotonic()
                self.authority = await self.new_authority(stack)
                self.authority_starts.append(time.monotonic() - began)
                return kind
        await asyncio.sleep(span)
        proxy.heal()
        return kind

    async def sample(self, agent: Process) -> None:
        begin = time.monotonic()
        while True:
            memory = Memory.of(agent.pid)
            at = time.monotonic() - begin
            self.samples.append(
                Sample(at, memory.rss / 1024, memory.anonymous / 1024, memory.descriptors)
            )
            await asyncio.sleep(2)


async def start_seconds() -> float:
    """How long an authority needs until it can sign, here and now."""
    with short_folder() as folder:
        began = time.monotonic()
        async with Node(folder).authority():
            return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    lifetime = max(LIFETIME, _STARTS * asyncio.run(start_seconds()))
    with (
        short_folder() as folder,
        tempfile.TemporaryDirectory() as logs,
        memory_group(BOUND) as authority,
        memory_group(BOUND) as agent,
    ):
        folder.chmod(0o711)
        node = Node(folder, workloads=("client", "server"), lifetime=f"{lifetime:.0f}s")
        soak = Soak(node, given.seconds, given.seed, (authority, agent), lifetime)
        mesh = asyncio.run(soak.run(Path(logs)))
        kills = (authority.kills(), agent.kills())
        peaks = [peak // 2**20 if (peak := each.peak()) else None for each in (authority, agent)]
    row("seed", str(given.seed))
    row("lifetime of certificates", f"{lifetime:.0f} s")
    row("faults", str(soak.faults.total()))
    for kind, count in sorted(soak.faults.items()):
        row(f"  {kind}", str(count))
    row("requests, each a full handshake", str(mesh.requests))
    row("failed", str(len(mesh.failures)))
    for what, count in soak.failed_in.most_common():
        row(f"  in {what}", str(count))
    slowest = max(soak.authority_starts, default=0.0)
    row("an authority could sign after its start, at the latest", f"{slowest:.1f} s")
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
    row("the most that authority and agent used, MiB", f"{peaks[0]}, {peaks[1]}")
    row("killed for want of memory: authority, agent", f"{kills[0]}, {kills[1]}")
    row("tasks of the agent that had to start again", str(soak.began_again))
    for failure in mesh.failures[:5]:
        print(failure)
    broken = bool(mesh.failures) or any(kills) or bool(soak.began_again)
    long = given.seconds > 5 * _WARM_UP_SECONDS
    return int(broken or (long and slope > _MOST_GROWTH_MB_PER_HOUR))


if __name__ == "__main__":
    sys.exit(main())
