"""Our bundle endpoint as the documentation sets it up: an Envoy with an SVID of ours in front."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import yaml

from sds.demo.envoys import LOOPBACK, ReservedPort
from sds.federation import document, endpoint
from sds.federation.endpoint import BundleServer
from sds.federation.settings import ServeSettings
from sds.identity import SpiffeId
from sds.operations.listeners import bundle_listener
from tests.support import need
from tests.support.envoy import running_envoy
from tests.support.refusals import refused
from tests.support.serving import TD, WEB, root, serving

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


async def test_https_spiffe_through_the_documented_envoy(tmp_path: Path) -> None:
    text = (need.ROOT / "deploy" / "federation" / "bundle-endpoint.yaml").read_text()
    bundle_socket = tmp_path / "bundle.sock"
    port = ReservedPort()
    async with serving(tmp_path) as served:
        text = text.replace("/run/attested-sds/bundle.sock", str(bundle_socket))
        text = text.replace(
            "/run/attested-sds/workloads/bundle-endpoint/sds.sock", str(served.socket)
        )
        bootstrap = yaml.safe_load(text)
        del bootstrap["admin"]
        address = bootstrap["static_resources"]["listeners"][0]["address"]["socket_address"]
        address.update(address=LOOPBACK, port_value=port.number)
        section = ServeSettings(listen=f"unix:{bundle_socket}", refresh_hint=timedelta(minutes=2))
        async with (
            bundle_listener(section, served.store, TD),
            running_envoy(bootstrap, folder=tmp_path, name="bundle-endpoint") as envoy,
        ):
            await envoy.until_live()
            url = f"https://{port.address}/bundle"
            roots = (root("one").der,)
            ours = BundleServer(url=url, spiffe_id=WEB.spiffe_id)
            content = await asyncio.to_thread(endpoint.fetch, ours, roots=roots)
            read = document.parse(content, where=url)
            assert read.roots == roots
            assert read.refresh_hint == timedelta(minutes=2)
            other = BundleServer(url=url, spiffe_id=SpiffeId.parse(f"spiffe://{TD}/other"))
            with refused("bundle_unavailable", match="not spiffe://"):
                await asyncio.to_thread(endpoint.fetch, other, roots=roots)
            with refused("bundle_unavailable", match="TLS cannot be verified"):
                await asyncio.to_thread(endpoint.fetch, ours, roots=(root("two").der,))
    port.close()
