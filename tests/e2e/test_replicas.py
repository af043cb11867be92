"""Replicas of one authority as real processes, of which one dies in a batch or cannot issue."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from grpc_health.v1 import health_pb2

from tests.support.authority import replica_health
from tests.support.mesh import running_mesh
from tests.support.node import AUTHORITY, Node, free_port, short_folder
from tests.support.process import PATIENCE_SECONDS
from tests.support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.support.process import Process

pytestmark = pytest.mark.e2e

MORE = tuple(f"more-{number}" for number in range(20))
A_BATCH = 4000
"""Bytes: a request for 22 certificates has more of them in one chunk, a Hello or handshake less."""


@pytest.fixture
def node() -> Iterator[Node]:
    with short_folder() as folder:
        yield Node(folder, workloads=("client", "server", *MORE), lifetime="6s")


class Replicas:
    """Issuing authorities under one root, each behind a proxy of its own."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.root_port = free_port()
        self.ports = (free_port(), free_port())
        self.proxies = tuple(Proxy(port) for port in self.ports)

    def root(self) -> contextlib.AbstractAsyncContextManager[Process]:
        signing = [{"measurement": AUTHORITY.hex(), "signing": {"path_length": 0}}]
        return self.node.authority(listen=f"127.0.0.1:{self.root_port}", identities=signing)

    def replica(
        self, number: int, *, ready: bool = True
    ) -> contextlib.AbstractAsyncContextManager[Process]:
        upstream = {
            "kind": "upstream",
            "authority": {"addresses": [f"127.0.0.1:{self.root_port}"]},
            "verification": {
                "trusted_roots": [str(self.node.ark)],
                "reference_values": {"measurements": [AUTHORITY.hex()]},
            },
        }
        return self.node.authority(
            ready=ready,
            listen=f"127.0.0.1:{self.ports[number]}",
            signer=upstream,
            tls={"server_names": ["ca.test"], "certificate_out": str(self.certificate(number))},
        )

    def certificate(self, number: int) -> Path:
        return self.node.folder / f"tls-{number}.pem"

    def section(self, way: str) -> dict[str, Any]:
        """The agent's section ``authority``."""
        # With what fits a lifetime of 6 s (1 s), a busy machine's replica counts as silent.
        addresses: dict[str, Any] = {
            "addresses": [f"127.0.0.1:{proxy.port}" for proxy in self.proxies],
            "connect": "3s",
        }
        if way == "attested":
            return addresses
        roots = self.node.folder / "tls.pem"
        roots.write_text("".join(self.certificate(number).read_text() for number in (0, 1)))
        return addresses | {"tls": {"root": str(roots), "server_name": "ca.test"}}

    async def batch_under_way(self) -> int:
        """Wait until a request for a batch is on its way to a replica; which one."""
        for proxy in self.proxies:
            proxy.largest = 0
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for number, proxy in enumerate(self.proxies):
                    if proxy.largest > A_BATCH:
                        return number
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def proxied(node: Node) -> AsyncIterator[Replicas]:
    replicas = Replicas(node)
    async with replicas.proxies[0].running(), replicas.proxies[1].running():
        yield replicas


def certified(agent: Process, *, after: int) -> set[str]:
    """The workloads that got a certificate since then."""
    return {
        line.split("spiffe_id=spiffe://example.org/")[1].split()[0]
        for line in agent.lines[after:]
        if " has certificate " in line
    }


async def all_certified(agent: Process, node: Node, *, after: int) -> None:
    left = set(node.workloads)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while left := set(node.workloads) - certified(agent, after=after):
                await asyncio.sleep(0.05)
    except TimeoutError:
        message = f"{sorted(left)} got no certificate:\n" + "\n".join(agent.lines[after:][:200])
        raise AssertionError(message) from None


@pytest.mark.parametrize("way", ["attested", "verified"])
async def test_one_is_killed_in_the_middle_of_a_batch(node: Node, tmp_path: Path, way: str) -> None:
    async with (
        proxied(node) as replicas,
        replicas.root(),
        replicas.replica(0) as one,
        replicas.replica(1) as two,
        node.agent(authority=replicas.section(way)) as agent,
        running_mesh(node, tmp_path) as mesh,
    ):
        await mesh.rotations(1)
        for proxy in replicas.proxies:
            proxy.unanswered_from = A_BATCH  # no answer is there yet when the victim dies
        victim = (one, two)[await replicas.batch_under_way()]
        seen = len(agent.lines)
        await victim.kill()
        for proxy in replicas.proxies:
            proxy.heal()
        await agent.line("an authority failed", after=seen)
        await all_certified(agent, node, after=seen)
        await mesh.rotations(1)
        mesh.undisturbed(agent)
        assert "no certificate for" not in agent.text
        assert "expired and was withdrawn" not in agent.text
        await mesh.no_resumption()


async def test_one_that_cannot_issue_is_not_chosen_until_it_can(node: Node, tmp_path: Path) -> None:
    status = health_pb2.HealthCheckResponse
    async with proxied(node) as replicas, contextlib.AsyncExitStack() as stack:
        root = await stack.enter_async_context(replicas.root())
        able = await stack.enter_async_context(replicas.replica(0))
        await root.kill()
        unable = await stack.enter_async_context(replicas.replica(1, ready=False))
        await unable.line("no certificate for the authority itself")
        assert await replica_health(replicas.ports[0]) == status.SERVING
        assert await replica_health(replicas.ports[1]) == status.NOT_SERVING
        async with (
            node.agent(authority=replicas.section("verified")) as agent,
            running_mesh(node, tmp_path) as mesh,
        ):
            await mesh.rotations(1)
            assert "an authority failed" not in agent.text
            # Its root is back (another one: self-signed); it can issue, and is all that is left.
            await stack.enter_async_context(replicas.root())
            await unable.line("READY")
            assert await replica_health(replicas.ports[1]) == status.SERVING
            seen = len(agent.lines)
            await able.kill()
            await all_certified(agent, node, after=seen)
            await mesh.rotations(1)
            mesh.undisturbed(agent)
            assert "no certificate for" not in agent.text
            await mesh.no_resumption()
