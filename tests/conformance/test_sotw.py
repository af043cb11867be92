from __future__ import annotations

from typing import TYPE_CHECKING

from sds.xds.observer import Event
from tests.support.serving import TD, WEB, root, serving, svid
from tests.support.xds_client import SECRET, Sotw, channel, secrets

if TYPE_CHECKING:
    from pathlib import Path

ID = str(WEB.spiffe_id)


async def test_one_request_for_two_names(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        await stream.ask("default", "ROOTCA")
        response = await stream.next()
        found = secrets(response)
        assert set(found) == {"default", "ROOTCA"}
        key = found["default"].tls_certificate.private_key.inline_bytes
        stored = at.store.svid(WEB)
        assert stored is not None
        assert key == stored.svid.private_key.reveal()
        assert b"BEGIN CERTIFICATE" in found["ROOTCA"].validation_context.trusted_ca.inline_bytes
        assert response.type_url == SECRET
        assert response.version_info
        assert response.nonce
        await stream.ack(response, "default", "ROOTCA")
        await stream.silent()
        assert at.tally.events[Event.ACK] == 1


async def test_an_update_is_pushed_and_a_key_is_released_when_it_is_acked(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        first = await stream.get("default")
        await stream.silent()
        old = at.store.svid(WEB)
        assert old is not None
        new = svid()
        at.store.put_svid(new)
        second = await stream.next()
        assert second.version_info != first.version_info
        assert at.store.key_held(old.svid.key_id)
        await stream.ack(second, "default")
        assert await at.store.until_key_released(old.svid.key_id, timeout_seconds=10)
        assert at.store.key_held(new.key_id)
        stream.cancel()
        assert await at.store.until_key_released(new.key_id, timeout_seconds=10)


async def test_a_bundle_change_pushes_only_the_bundle(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        certificate, bundle = Sotw(connection), Sotw(connection)
        await certificate.get("default")
        await bundle.get("ROOTCA")
        at.store.put_bundle(TD, [root("one").der, root("two").der])
        assert set(secrets(await bundle.next())) == {"ROOTCA"}
        await certificate.silent()
