"""Faults under continuous full handshakes between two real Envoys: nothing may fail.

The short form of what ``make soak`` runs for long; ``docs/reliability.md`` tells what was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import need
from tests.support.mesh import Mesh, running_mesh
from tests.support.node import Node, short_folder
from tests.support.process import PATIENCE_SECONDS, Process, output
from tests.support.proxy import Proxy
from tests.support.wall_clock import SteppedClock
from tests.support.xds_client import channel, fetch, secrets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.e2e

LIFETIME = 10.0


@pytest.fixture
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    lifetime = getattr(request, "param", LIFETIME)
    with short_folder() as folder:
        yield Node(folder, workloads=("client", "server"), lifetime=f"{lifetime:.0f}s")


def lifetime(seconds: float) -> pytest.MarkDecorator:
    """Certificates of the test's node live that long."""
    return pytest.mark.parametrize("node", [seconds], indirect=True)


@dataclass
class World:
    node: Node
    agent: Process
    proxy: Proxy
    mesh: Mesh

    async def unharmed(self) -> None:
        """Rotation goes on, nothing failed, and every handshake was a full one."""
        await self.mesh.rotations(1)
        self.mesh.undisturbed()
        await self.mesh.no_resumption()


@contextlib.asynccontextmanager
async def world(
    node: Node, folder: Path, *, patience: dict[str, str] | None = None, **agent: Any
) -> AsyncIterator[World]:
    """An authority behind a proxy, an agent, two Envoys and traffic.

    ``patience``: how long the agent waits for the authority, if not as fits its lifetimes.
    """
    async with (
        node.authority(),
        Proxy(node.port).running() as proxy,
        node.agent(
            authority={"addresses": [f"127.0.0.1:{proxy.port}"], **(patience or {})}, **agent
        ) as process,
        running_mesh(node, folder) as mesh,
    ):
        yield World(node, process, proxy, mesh)


async def is_served(node: Node, workload: str) -> bool:
    async with channel(f"unix:{node.socket(workload)}") as connection:
        return "default" in secrets(await fetch(connection, "default"))


async def test_the_network_to_the_authority(node: Node, tmp_path: Path) -> None:
    async with world(node, tmp_path) as w:
        # an outage of 45 % of the lifetime, silent; who starts during it is served
        w.proxy.blackhole = True
        await asyncio.sleep(0.45 * LIFETIME)
        assert await is_served(node, "client")
        w.proxy.heal()
        await w.unharmed()
        # connections reset, and refused for a while
        w.proxy.refuse = True
        w.proxy.reset()
        await w.agent.line("no certificate for", after=len(w.agent.lines))
        w.proxy.heal()
        await w.unharmed()
        # cut in the middle of an answer
        w.proxy.cut_after = 3000
        w.proxy.reset()
        await asyncio.sleep(0.2 * LIFETIME)
        w.proxy.heal()
        await w.unharmed()
        # a byte of everything changed: TLS finds it
        w.proxy.corrupt = True
        await asyncio.sleep(0.2 * LIFETIME)
        w.proxy.heal()
        await w.unharmed()
        # slow
        w.proxy.delay = 0.1
        await w.unharmed()


@lifetime(16)  # half of it is longer than the next authority takes to start on a busy machine
async def test_an_authority_that_dies_comes_back_with_another_root(
    node: Node, tmp_path: Path
) -> None:
    async with (
        contextlib.AsyncExitStack() as authority,
        Proxy(node.port).running() as proxy,
    ):
        first = await authority.enter_async_context(node.authority())
        addresses = {"addresses": [f"127.0.0.1:{proxy.port}"]}
        async with node.agent(authority=addresses) as agent, running_mesh(node, tmp_path) as mesh:
            await first.kill()
            async with node.authority():
                await agent.line("new root")
                await mesh.rotations(2)
                mesh.undisturbed()
                # The old root leaves once no leaf under it can live.
                await agent.line("left the bundle")
                await mesh.rotations(1)
                mesh.undisturbed()
                await mesh.no_resumption()


async def test_a_stopped_authority_and_a_stopped_agent(node: Node, tmp_path: Path) -> None:
    async with (
        node.authority() as authority,
        node.agent() as agent,
        running_mesh(node, tmp_path) as mesh,
    ):
        for process in (authority, agent):
            process.signal(signal.SIGSTOP)
            await asyncio.sleep(0.25 * LIFETIME)
            process.signal(signal.SIGCONT)
            await mesh.rotations(1)
            mesh.undisturbed()


@lifetime(60)  # none ends before the next agent and both Envoys' new streams are there
async def test_a_killed_agent_comes_back_and_streams_resume_without_a_nack(
    node: Node, tmp_path: Path
) -> None:
    async with node.authority(), contextlib.AsyncExitStack() as agents:
        agent = await agents.enter_async_context(node.agent())
        async with running_mesh(node, tmp_path) as mesh:
            await agent.kill()
            before = {name: serials[-1] for name, serials in mesh.seen.items()}
            again = await agents.enter_async_context(node.agent(ready=False))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while any(mesh.seen[name][-1] == serial for name, serial in before.items()):
                    await asyncio.sleep(0.02)
            mesh.undisturbed()
            assert "NACK" not in again.text
            for envoy in (mesh.client, mesh.server):
                stats = await envoy.stats("sds.")
                assert not sum(n for name, n in stats.items() if name.endswith("update_rejected"))


async def test_descriptors_run_out_and_memory_cannot_grow(node: Node, tmp_path: Path) -> None:
    # What is given up, because a busy machine answers late, has no descriptor to be repeated with.
    async with world(node, tmp_path, patience={"connect": "30s", "answer": "30s"}) as w:
        pid = w.agent.pid
        files = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used, files[1]))
        refused = [asyncio.create_task(_connect(node)) for _ in range(20)]
        await w.mesh.rotations(1)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, files)
        await asyncio.gather(*refused)
        await w.unharmed()
        assert await is_served(node, "server")
        # no more memory than it has, and a little
        space = resource.prlimit(pid, resource.RLIMIT_DATA)
        size = int(Path(f"/proc/{pid}/statm").read_text().split()[5]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(pid, resource.RLIMIT_DATA, (size + 64 * 2**20, space[1]))
        await w.unharmed()
        assert w.agent.returncode is None


async def _connect(node: Node) -> None:
    _, writer = await asyncio.open_unix_connection(str(node.socket("client")))
    await asyncio.sleep(1.0)
    writer.close()


async def test_a_full_disk_under_the_run_directory(node: Node, tmp_path: Path) -> None:
    need.root()
    node.run_dir.mkdir()
    mounted = await output(
        [need.tool("mount"), "-t", "tmpfs", "-o", "size=64k,mode=0700", "sds", node.run_dir]
    )
    if mounted[0] != 0:
        need.missing(f"mounting a tmpfs ({mounted[2].strip()})")
    try:
        async with node.authority(), node.agent() as agent:
            with contextlib.suppress(OSError), (node.run_dir / "full").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
            async with running_mesh(node, tmp_path) as mesh:
                await mesh.rotations(1)
                mesh.undisturbed()
                assert agent.returncode is None
    finally:
        await output([need.tool("umount"), "-l", node.run_dir])


async def test_the_agents_wall_clock_is_stepped_both_ways(node: Node, tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    async with (
        node.authority(),
        node.agent(env=clock.env) as agent,
        running_mesh(node, tmp_path) as m,
    ):
        for step in (3, 0):  # within the authority's backdating and the lifetime
            clock.step(step)
            await agent.line("the wall clock moved by", after=len(agent.lines))
            await m.rotations(2)
            assert not m.failures, m.failures[:5]
