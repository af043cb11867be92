"""Two real Envoys that talk mTLS all the time, each request over a full handshake of its own."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import aiohttp

from sds.bootstrap.plan import Protocol
from sds.demo.envoys import DemoPorts, ReservedPort, bootstraps
from sds.demo.ledger import RotationLedger
from sds.demo.traffic import ask
from sds.errors import RequestFailedError
from tests.support.envoy import Envoy, running_envoy
from tests.support.process import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from sds.demo.ledger import PeerCertificate
    from tests.support.node import Node
    from tests.support.process import Process

CLIENT, SERVER = "client", "server"
_PAUSE_SECONDS = 0.05


@dataclass
class Mesh:
    """The Envoys and what traffic has seen since the start."""

    client: Envoy
    server: Envoy
    entry: str
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    seen: dict[str, list[str]] = field(default_factory=lambda: {CLIENT: [], SERVER: []})

    async def rotations(self, count: int, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until traffic has shown so many more certificates on both sides."""
        before = {name: len(serials) for name, serials in self.seen.items()}
        try:
            async with asyncio.timeout(seconds):
                while any(len(self.seen[name]) < before[name] + count for name in before):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            message = f"no {count} rotations within {seconds} s; failures: {self.failures[:3]}"
            raise AssertionError(message) from None

    def undisturbed(self, *processes: Process) -> None:
        """No request has failed; else, which did, and what the processes said until now."""
        if self.failures:
            first = "\n".join([*self.failures[:3], "…", *self.failures[-2:]])
            said = "\n".join(f"{one.name} said:\n{one.text}" for one in processes)
            raise AssertionError(
                f"{len(self.failures)} of {self.requests} requests failed:\n{first}\n{said}"
            )

    async def no_resumption(self) -> None:
        """Every handshake was a full one."""
        stats = await self.server.stats("listener.")
        assert sum(n for name, n in stats.items() if name.endswith("ssl.session_reused")) == 0

    def saw(self, certificates: dict[str, PeerCertificate]) -> None:
        self.requests += 1
        for name, certificate in certificates.items():
            serials = self.seen[name]
            if not serials or serials[-1] != certificate.serial:
                serials.append(certificate.serial)


@contextlib.asynccontextmanager
async def running_mesh(
    node: Node,
    folder: Path,
    *,
    server_node: Node | None = None,
    env: Mapping[str, Mapping[str, str]] | None = None,
) -> AsyncIterator[Mesh]:
    """Both Envoys, with traffic, while the block runs; the first request has gone through.

    ``server_node``: where the server's Envoy has its secrets from, if not from ``node``. ``env``:
    what is added to the environment of the Envoy of each name.
    """
    names = (ReservedPort(), ReservedPort(), ReservedPort(), ReservedPort())
    ports = DemoPorts(entry=names[0], server=names[1], client_admin=names[2], server_admin=names[3])
    sockets = {CLIENT: node.socket(CLIENT), SERVER: (server_node or node).socket(SERVER)}
    added = env or {}
    made = bootstraps(sockets=sockets, ports=ports, protocol=Protocol.SOTW)
    ledger = RotationLedger({name: f"spiffe://example.org/{name}" for name in (CLIENT, SERVER)})
    timeout = aiohttp.ClientTimeout(total=10)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(ports.close)
        server = await stack.enter_async_context(
            running_envoy(made[SERVER], folder=folder, name=SERVER, env=added.get(SERVER))
        )
        client = await stack.enter_async_context(
            running_envoy(made[CLIENT], folder=folder, name=CLIENT, env=added.get(CLIENT))
        )
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        mesh = Mesh(client=client, server=server, entry=f"http://{ports.entry.address}/")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not mesh.requests:
                with contextlib.suppress(RequestFailedError):
                    mesh.saw(await _request(http, mesh.entry, ledger))
                await asyncio.sleep(0.05)
        group = await stack.enter_async_context(asyncio.TaskGroup())
        tasks = [group.create_task(_traffic(mesh, http, ledger)) for _ in range(2)]
        stack.callback(lambda: [task.cancel() for task in tasks])
        yield mesh


async def _request(
    http: aiohttp.ClientSession, entry: str, ledger: RotationLedger
) -> dict[str, PeerCertificate]:
    """Send one request; a denial is a failure too."""
    seen = await ask(http, entry, ledger)
    if seen is None:
        raise RequestFailedError("HTTP 403: the server's Envoy denied it")
    return seen


async def _traffic(mesh: Mesh, http: aiohttp.ClientSession, ledger: RotationLedger) -> None:
    while True:
        try:
            mesh.saw(await _request(http, mesh.entry, ledger))
        except RequestFailedError as error:
            mesh.requests += 1
            mesh.failures.append(f"{datetime.now(UTC):%H:%M:%S.%f} {error}")
        await asyncio.sleep(_PAUSE_SECONDS)
