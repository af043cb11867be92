"""Certificates of an Istio authority in a real Envoy: they arrive, rotate, and survive an outage.

The whole way is the agent's own: Istio client, rotation, store, xDS; one sidecar Envoy sends to
its own mTLS listener, so each request is a full handshake with the certificate on both sides.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from sds.agent.state_reader import LivingParts, UnservedIdentities
from sds.authority.istio import IstioAuthority
from sds.authority.istio_settings import IstioSettings
from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, Outbound, SecretSource
from sds.clock import SystemClock
from sds.demo.envoys import LOOPBACK, ReservedPort
from sds.demo.traffic import client_certificate, server_certificate
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.operations.instruments import AgentInstruments
from sds.operations.status_page.render import page
from sds.secrets.rotation import Rotation
from sds.secrets.rotation_settings import RotationSettings
from sds.serving.limits import ServingLimits
from sds.serving.server import make_server
from sds.serving.service import SecretService
from sds.unix_sockets import listening
from sds.workload.entitlement import Caller, Entitlement
from tests.support import istio_ca
from tests.support.envoy import Envoy, running_envoy
from tests.support.process import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from sds.operations.state import AgentState

pytestmark = pytest.mark.e2e
WEB = Identity(spiffe_id=SpiffeId.parse(istio_ca.ACCOUNT), lifetime=timedelta(seconds=8))
TRUST_DOMAIN = TrustDomain("cluster.local")


@dataclass(kw_only=True)
class Agent:
    """The agent's parts in this process, with everything that an operator can switch on."""

    instruments: AgentInstruments
    rotation: Rotation
    service: SecretService
    socket: Path

    def value(self, name: str, **labels: str) -> float:
        return self.instruments.registry.get_sample_value(name, labels) or 0.0

    async def until(self, condition: Callable[[], bool], *, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.05)

    def look(self) -> AgentState:
        clock = SystemClock()
        return LivingParts(
            trust_domain=TRUST_DOMAIN,
            started=clock.now(),
            clock=clock,
            store=self.instruments.store,
            rotation=self.rotation,
            service=self.service,
            unserved=UnservedIdentities(
                [Entitlement(Caller(name="web", selectors=frozenset(), identities=(WEB,)))],
                self.instruments.store,
            ),
            authority=lambda: "istiod",
        ).state()


@contextlib.asynccontextmanager
async def agent(endpoint: istio_ca.Endpoint, folder: Path) -> AsyncIterator[Agent]:
    clock = SystemClock()
    instruments = AgentInstruments(clock=clock)
    settings = IstioSettings(
        addresses=(endpoint.address,),
        root=endpoint.root,
        token=endpoint.token(),
        timeout=timedelta(seconds=3),
    )
    authority = IstioAuthority(settings, clock=clock)
    rotation = Rotation(
        trust_domain=TRUST_DOMAIN,
        store=instruments.store,
        authority=instruments.authority(authority),
        clock=clock,
        settings=RotationSettings(settling=timedelta(seconds=1)),
        observer=instruments,
    )
    service = SecretService(instruments.store, observer=instruments.serving)
    entitlement = Entitlement(Caller(name="web", selectors=frozenset(), identities=(WEB,)))

    async def entitle(_context: object) -> Entitlement:
        return entitlement

    server = make_server(ServingLimits(), service.handlers(entitle))
    socket = folder / "sds.sock"
    rotation.ensure(WEB)
    await server.listen(listening(socket, 0o600))
    running = asyncio.create_task(rotation.run())
    try:
        yield Agent(instruments=instruments, rotation=rotation, service=service, socket=socket)
        assert not running.done(), running
    finally:
        service.close()
        await server.stop(1)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await authority.aclose()


@dataclass(kw_only=True)
class Sidecar:
    """A running Envoy and the way into it."""

    envoy: Envoy
    entry: str

    async def serial(self) -> str:
        """Of a fresh handshake: one certificate, used on both sides."""
        async with self.envoy.http.get(self.entry) as response:
            body = await response.text()
            assert response.status == 200, body
            header = response.headers["x-sds-server-certificate"]
        client, server = client_certificate(body), server_certificate(header)
        assert client.spiffe_id == server.spiffe_id == istio_ca.ACCOUNT
        return client.serial

    async def until_other(self, serial: str, *, seconds: float) -> str:
        """Ask until another certificate is in use; no request may fail meanwhile."""
        seen = serial
        async with asyncio.timeout(seconds):
            while (seen := await self.serial()) == serial:
                await asyncio.sleep(0.05)
        return seen


@contextlib.asynccontextmanager
async def sidecar(socket: Path, folder: Path) -> AsyncIterator[Sidecar]:
    inbound, outbound = ReservedPort(), ReservedPort()
    made = to_dict(
        make_bootstrap(
            node="istio-sidecar",
            secrets=SecretSource(socket=socket),
            admin=Endpoint(host=LOOPBACK, port=0),
            inbound=[Inbound(listen=inbound.endpoint)],
            outbound=[
                Outbound(
                    listen=outbound.endpoint,
                    upstreams={"*": inbound.endpoint},
                    full_handshakes=True,
                    fresh_connections=True,
                )
            ],
        )
    )
    try:
        async with running_envoy(made, folder=folder, name="sidecar") as envoy:
            await envoy.until_live()
            yield Sidecar(envoy=envoy, entry=f"http://{outbound.address}/")
    finally:
        inbound.close()
        outbound.close()


@pytest.mark.parametrize("which", istio_ca.kinds())
async def test_a_chain_reaches_an_envoy_and_rotates(tmp_path: Path, which: str) -> None:
    authority = istio_ca.IstioCA(folder=tmp_path / "ca", intermediate=True, shape="one-block")
    endpoint = istio_ca.reference() if which == "istio" else await authority.start()
    try:
        async with (
            agent(endpoint, tmp_path) as at,
            sidecar(at.socket, tmp_path) as car,
        ):
            first = await car.serial()
            second = await car.until_other(first, seconds=PATIENCE_SECONDS)
            await car.until_other(second, seconds=PATIENCE_SECONDS)
            stats = await car.envoy.stats("listener.")
            assert not any(value for name, value in stats.items() if "session_reused" in name)
            assert at.value("sds_nacks_total", reason="other") == 0
            assert at.value("sds_renewals_total") >= 3
            assert at.value("sds_certificates_requested_total", outcome="issued") >= 3
            assert at.value("sds_push_latency_seconds_count") >= 2
            view = at.look()
            assert view.readiness.ready
            assert view.identities[0].workloads == ("web",)
            states = {s.state for client in view.clients for s in client.subscriptions}
            assert states <= {"ACKed", "sent"}
            assert "istio-sidecar" in page(view, nonce="n")
    finally:
        await authority.stop()


async def test_an_outage_fails_no_handshake_and_ends_by_itself(tmp_path: Path) -> None:
    authority = istio_ca.IstioCA(folder=tmp_path / "ca")
    endpoint = await authority.start()
    try:
        async with (
            agent(endpoint, tmp_path) as at,
            sidecar(at.socket, tmp_path) as car,
        ):
            first = await car.serial()
            await authority.stop()
            down = "sds_renewal_failures_total"
            await at.until(
                lambda: at.value(down, reason="authority_unavailable") >= 1,
                seconds=PATIENCE_SECONDS,
            )
            await car.serial()
            assert any(past.reason == "authority_unavailable" for past in at.instruments.errors)
            await authority.start()
            await car.until_other(first, seconds=PATIENCE_SECONDS)
    finally:
        await authority.stop()


async def test_a_refused_token_is_cured_without_a_restart(tmp_path: Path) -> None:
    authority = istio_ca.IstioCA(folder=tmp_path / "ca")
    endpoint = await authority.start()
    good = endpoint.token().read_text()
    endpoint.token().write_text(endpoint.token("expired").read_text())
    try:
        async with agent(endpoint, tmp_path) as at:
            await at.until(
                lambda: at.value("sds_renewal_failures_total", reason="unauthenticated") >= 1,
                seconds=PATIENCE_SECONDS,
            )
            view = at.look()
            assert not view.readiness.ready
            assert "the token expired" in view.identities[0].message
            endpoint.token().write_text(good)
            await at.until(lambda: at.rotation.ready, seconds=PATIENCE_SECONDS)
    finally:
        await authority.stop()
