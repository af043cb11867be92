"""A small mesh of real Envoys that live by one policy: sockets in this process, one holder."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from sds.agent.policy_peers import PolicyPeers
from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, Outbound, SecretSource
from sds.clock import SystemClock
from sds.identity import Identity, SpiffeId
from sds.policy.holder import PolicyHolder
from sds.policy.succession import PolicySuccession
from sds.serving.service import ServingOptions
from tests.support.envoy import NEWEST, Envoy, running_envoy
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting
from tests.support.serving import TD, Serving, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.policy.trust import AdmittedPolicy

S = f"spiffe://{TD}"
ANY_PORT = Endpoint(host="127.0.0.1", port=0)


@dataclass
class Author:
    """Signs one epoch after the other, and gives them to a holder."""

    signatory: Signatory = field(default_factory=lambda: Signatory("author"))
    epoch: int = 0

    def holder(self) -> PolicyHolder:
        start = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(self.signatory))
        return PolicyHolder(start, clock=SystemClock())

    def publish(self, holder: PolicyHolder, **fields: Any) -> AdmittedPolicy:
        """Put the next epoch into force."""
        self.epoch += 1
        now = datetime.now(UTC)
        window = {
            "not_before": (now - timedelta(hours=1)).isoformat(),
            "not_after": (now + timedelta(hours=1)).isoformat(),
        }
        outcome = holder.take(
            sign(document(self.epoch, **{**window, **fields}), self.signatory), origin="test"
        )
        assert outcome.taken is not None, outcome.refusal
        return outcome.taken

    def allow(self, holder: PolicyHolder, *pairs: tuple[str, str], **fields: Any) -> None:
        """Put an epoch into force that allows exactly these workloads, by name, to talk."""
        rules = [{"from": f"{S}/{one}", "to": f"{S}/{two}"} for one, two in pairs]
        self.publish(holder, allow=rules, **fields)


@contextlib.asynccontextmanager
async def workload(
    folder: Path,
    name: str,
    holder: PolicyHolder,
    *,
    path: str = "",
    options: ServingOptions | None = None,
) -> AsyncIterator[Serving]:
    """The socket of one workload, with an SVID of its own and contexts by policy."""
    identity = Identity(spiffe_id=SpiffeId(TD, path or f"/{name}"))
    options = options or ServingOptions(peers=PolicyPeers(holder))
    async with serving(
        folder, identities=(identity,), options=options, name=f"{name}.sock"
    ) as running:
        stop = holder.listen(running.service.refresh)
        try:
            yield running
        finally:
            stop()


@dataclass(frozen=True, kw_only=True)
class Server:
    """An Envoy with an mTLS listener that answers which peer it saw."""

    envoy: Envoy
    endpoint: Endpoint


def server_bootstrap(at: Serving, validation: str = "inbound") -> dict[str, Any]:
    return to_dict(
        make_bootstrap(
            node=f"server-{at.socket.stem}",
            secrets=SecretSource(socket=at.socket, validation=validation),
            admin=ANY_PORT,
            inbound=[Inbound(listen=ANY_PORT)],
        )
    )


@contextlib.asynccontextmanager
async def server(
    bootstrap: dict[str, Any], folder: Path, *, name: str = "server", version: str = NEWEST
) -> AsyncIterator[Server]:
    async with running_envoy(bootstrap, folder=folder, name=name, version=version) as envoy:
        await envoy.until_live()
        host, port = await envoy.address("inbound")
        yield Server(envoy=envoy, endpoint=Endpoint(host=host, port=port))


@dataclass(kw_only=True)
class Client:
    """An Envoy whose plain listener leads to a server by mTLS."""

    name: str
    envoy: Envoy
    entry: str
    statuses: list[int] = field(default_factory=list)

    async def ask(self) -> tuple[int, str]:
        """One request; the server's Envoy says which peer it saw."""
        async with self.envoy.http.get(self.entry) as response:
            text = await response.text()
            self.statuses.append(response.status)
            return response.status, text

    async def may(self) -> bool:
        status, text = await self.ask()
        assert status in {200, 503}, text
        if status == 200:
            assert f"{S}/{self.name}" in text
        return status == 200

    async def until(self, *, may: bool, seconds: float = 10.0) -> float:
        """Ask until the answer is this; returns the seconds that it took."""
        began = time.monotonic()
        async with asyncio.timeout(seconds):
            while await self.may() is not may:
                await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def asked(self, many: int, *, seconds: float = 30.0) -> None:
        """Wait until this many requests were made."""
        async with asyncio.timeout(seconds):
            while len(self.statuses) < many:
                await asyncio.sleep(0.02)

    async def keep_asking(self, until: asyncio.Event) -> int:
        """Ask all the time; returns how many answers were not 200."""
        failed = 0
        while not until.is_set():
            failed += not await self.may()
            await asyncio.sleep(0.005)
        return failed


@contextlib.asynccontextmanager
async def client(
    at: Serving,
    to: Server,
    folder: Path,
    *,
    validation: str = "ROOTCA",
    fresh: bool = True,
    full_handshakes: bool = True,
    version: str = NEWEST,
) -> AsyncIterator[Client]:
    name = at.socket.stem
    bootstrap = to_dict(
        make_bootstrap(
            node=f"client-{name}",
            secrets=SecretSource(socket=at.socket, validation=validation),
            admin=ANY_PORT,
            outbound=[
                Outbound(
                    listen=ANY_PORT,
                    upstreams={"*": to.endpoint},
                    fresh_connections=fresh,
                    full_handshakes=full_handshakes,
                )
            ],
        )
    )
    kind = "fresh" if fresh else "kept"
    async with running_envoy(
        bootstrap,
        folder=folder,
        name=f"{name}-{kind}-{validation[:8].replace(':', '-')}",
        version=version,
    ) as envoy:
        await envoy.until_live()
        host, port = await envoy.address("outbound")
        yield Client(name=name, envoy=envoy, entry=f"http://{host}:{port}/")
