"""Envoys of five versions against the real service, by every variant of the protocol.

One sidecar Envoy a case: its plain listener sends to its own mTLS listener, so one request shows
both uses of SDS (a listener's certificate and a cluster's), as a full handshake.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sds.bootstrap.build import make_bootstrap
from sds.bootstrap.commented_yaml import to_dict
from sds.bootstrap.plan import Endpoint, Inbound, Outbound, Protocol, SecretSource
from sds.demo.envoys import LOOPBACK, ReservedPort
from sds.demo.traffic import client_certificate, server_certificate
from sds.serving.observer import Event
from tests.support.bootstrap_rules import nodes
from tests.support.envoy import VERSIONS, Envoy, running_envoy
from tests.support.process import PATIENCE_SECONDS
from tests.support.serving import TD, WEB, Serving, root, serving, svid

pytestmark = pytest.mark.e2e

CASES = [*Protocol, "ads-cds"]
"""The variants; in ``ads-cds`` the cluster comes by CDS (a file), and its secrets over ADS."""


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """A running Envoy and the way into it."""

    envoy: Envoy
    entry: str

    async def serials(self) -> tuple[str, str]:
        """Serials of client and server in a fresh handshake: the same certificate, used twice."""
        async with self.envoy.http.get(self.entry) as response:
            body = await response.text()
            assert response.status == 200, body
            header = response.headers["x-sds-server-certificate"]
        client, server = client_certificate(body), server_certificate(header)
        assert client.spiffe_id == server.spiffe_id == str(WEB.spiffe_id)
        return client.serial, server.serial

    async def until_serial(self, serial: int, *, seconds: float = PATIENCE_SECONDS) -> None:
        """Ask until both sides use the certificate with this serial; no request may fail."""
        wanted = f"{serial:x}"
        seen: tuple[str, str] = ("", "")
        try:
            async with asyncio.timeout(seconds):
                while seen != (wanted, wanted):
                    seen = await self.serials()
        except TimeoutError:
            pytest.fail(f"Envoy {self.envoy.version} stays at {seen}, not {wanted}")


@contextlib.asynccontextmanager
async def sidecar(case: str, socket: Path, folder: Path, version: str) -> AsyncIterator[Sidecar]:
    """An Envoy of this version whose outbound requests go to its own mTLS listener."""
    inbound, outbound = ReservedPort(), ReservedPort()
    protocol = Protocol.ADS if case == "ads-cds" else Protocol(case)
    made = to_dict(
        make_bootstrap(
            node=f"{case}-{version}",
            secrets=SecretSource(socket=socket, protocol=protocol),
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
    if case == "ads-cds":
        clusters_by_cds(made, folder / "clusters.yaml")
    try:
        async with running_envoy(made, folder=folder, version=version, name=case) as envoy:
            await envoy.until_live()
            yield Sidecar(envoy=envoy, entry=f"http://{outbound.address}/")
    finally:
        inbound.close()
        outbound.close()


def clusters_by_cds(bootstrap: dict[str, Any], file: Path) -> None:
    """Move the mTLS cluster out of the bootstrap into a CDS file, its secrets to the ADS stream."""
    static = bootstrap["static_resources"]["clusters"]
    moved = [cluster for cluster in static if "transport_socket" in cluster]
    static[:] = [cluster for cluster in static if "transport_socket" not in cluster]
    for node in nodes(moved):
        if "api_config_source" in node.get("sds_config", {}):
            node["sds_config"] = {"ads": {}, "resource_api_version": "V3"}
    for node in nodes(bootstrap):
        if "route_config" in node:
            node["route_config"]["validate_clusters"] = False
    kind = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
    resources = [{"@type": kind, **cluster} for cluster in moved]
    file.write_text(yaml.safe_dump({"resources": resources}))
    bootstrap["dynamic_resources"]["cds_config"] = {
        "path_config_source": {"path": str(file)},
        "resource_api_version": "V3",
    }


async def rotate_and_check(case: str, at: Serving, folder: Path, version: str) -> None:
    async with sidecar(case, at.socket, folder, version) as car:
        first = at.store.svid(WEB)
        assert first is not None
        await car.until_serial(first.svid.serial)

        # A new certificate, then a second root, then a leaf under it, then the first root goes.
        second = svid()
        at.store.put_svid(second)
        await car.until_serial(second.serial)
        version_of_both = at.store.put_bundle(TD, [root("one").der, root("two").der])
        assert not await at.store.until_acked(TD, version_of_both, timeout_seconds=30)
        third = svid(signer=root("two"))
        at.store.put_svid(third)
        await car.until_serial(third.serial)
        only_two = at.store.put_bundle(TD, [root("two").der])
        assert not await at.store.until_acked(TD, only_two, timeout_seconds=30)
        await car.until_serial(third.serial)

        stats = await car.envoy.stats()
        # update_failure is not a refusal: Envoy counts it for streams that it tries to open before
        # its own clusters are ready.
        assert counted(stats, ".update_success") >= 2, "the counters have these names"
        assert counted(stats, ".update_rejected") == 0, f"Envoy {version} refused by {case}"
        assert stats["cluster.sds.upstream_cx_total"] == 1, "one connection carries every stream"
        assert stats["listener.inbound.ssl.handshake"] > 0
        assert stats.get("listener.inbound.ssl.session_reused", 0) == 0


@pytest.mark.parametrize("version", VERSIONS)
async def test_every_variant_rotates_without_a_failed_request(version: str, tmp_path: Path) -> None:
    for case in CASES:
        folder = tmp_path / case
        folder.mkdir()
        async with serving(folder) as at:
            await rotate_and_check(case, at, folder, version)
            assert at.tally.events[Event.ACK] >= 5
            assert at.tally.events[Event.NACK] == 0


async def test_an_envoy_returns_within_two_seconds_of_its_agent(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        at = await stack.enter_async_context(serving(tmp_path))
        async with sidecar("sotw", at.socket, tmp_path, VERSIONS[0]) as car:
            old = at.store.svid(WEB)
            assert old is not None
            await car.until_serial(old.svid.serial)
            await stack.aclose()
            # Without an agent Envoy goes on with what it has, for as long as one likes to look.
            await car.envoy.until_stat("cluster.sds.upstream_cx_connect_fail", 3)
            await car.until_serial(old.svid.serial)
            async with serving(tmp_path) as again:
                new = again.store.svid(WEB)
                assert new is not None
                began = time.monotonic()
                await car.until_serial(new.svid.serial)
                print(f"back after {time.monotonic() - began:.2f} s")


async def test_names_that_are_not_there_stay_pending_and_harm_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        pending = to_dict(
            make_bootstrap(
                node="pending",
                secrets=SecretSource(
                    socket=at.socket, certificate="spiffe://example.org/none", validation="none"
                ),
                admin=Endpoint(host=LOOPBACK, port=0),
                inbound=[Inbound(listen=Endpoint(host=LOOPBACK, port=0))],
            )
        )
        async with (
            running_envoy(pending, folder=tmp_path, name="pending") as waiting,
            sidecar("sotw", at.socket, tmp_path, VERSIONS[0]) as car,
        ):
            stored = at.store.svid(WEB)
            assert stored is not None
            await car.until_serial(stored.svid.serial)
            stats = await waiting.until(lambda found: counted(found, ".update_attempt") >= 2)
            assert counted(stats, ".update_rejected") == 0
            assert counted(stats, ".update_success") == 0
            assert (await waiting.get("/ready")).strip() != "LIVE"
            await car.until_serial(stored.svid.serial)


def counted(stats: dict[str, int], ending: str) -> int:
    return sum(value for name, value in stats.items() if name.endswith(ending))
