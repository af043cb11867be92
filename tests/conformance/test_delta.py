"""Delta, case by case, against a running server over a Unix socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from sds.serving.observer import Event
from sds.workload.entitlement import Caller
from tests.support.front_door import until
from tests.support.serving import API, OTHER, TD, WEB, root, serving, svid
from tests.support.xds_client import SECRET, Delta, channel, secrets

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("transport")

ID = str(WEB.spiffe_id)
BUNDLE = f"spiffe://{TD}"


async def test_several_names_come_in_one_response_with_their_versions(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default", ID, "ROOTCA", BUNDLE)
        response = await stream.next()
        assert set(secrets(response)) == {"default", ID, "ROOTCA", BUNDLE}
        assert response.type_url == SECRET
        assert response.nonce
        svid_version = at.store.svid(WEB)
        assert svid_version is not None
        versions = {resource.name: resource.version for resource in response.resources}
        assert versions["default"] == versions[ID] == svid_version.version
        assert versions["ROOTCA"] == versions[BUNDLE] != versions["default"]
        await stream.ack(response)
        await stream.silent()
        assert at.tally.events[Event.ACK] == 1


async def test_only_what_changed_is_sent(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default", "ROOTCA")
        await stream.ack(await stream.next())
        at.store.put_bundle(TD, [root("one").der, root("two").der])
        response = await stream.next()
        assert set(secrets(response)) == {"ROOTCA"}
        await stream.ack(response)
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {"default"}


async def test_names_that_change_together_come_together(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default", ID, "ROOTCA")
        await stream.ack(await stream.next())
        at.store.put_svid(svid())
        at.store.put_bundle(TD, [root("two").der])
        assert set(secrets(await stream.next())) == {"default", ID, "ROOTCA"}


async def test_a_name_that_is_not_there_is_told_once_and_pushed_when_it_is(tmp_path: Path) -> None:
    async with serving(tmp_path, empty=True) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("no-such-name", str(API.spiffe_id))
        response = await stream.next()
        assert list(response.removed_resources) == ["no-such-name", str(API.spiffe_id)]
        assert not response.resources
        await stream.ack(response)
        await stream.ask("default")
        at.store.put_bundle(TD, [root("one").der])
        await stream.silent()
        at.store.put_svid(svid())
        response = await stream.next()
        assert set(secrets(response)) == {"default"}
        assert not response.removed_resources


async def test_what_has_only_not_come_yet_is_not_told_as_removed(tmp_path: Path) -> None:
    """Envoy takes a removal for an answer: its listener would begin without a certificate."""
    async with serving(tmp_path, empty=True) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default", "ROOTCA", "ALL", ID, BUNDLE, "nothing")
        response = await stream.next()
        assert list(response.removed_resources) == ["nothing"]
        await stream.ack(response)
        at.store.put_bundle(TD, [root("one").der])
        at.store.put_svid(svid())
        found: set[str] = set()
        while found != {"default", "ROOTCA", "ALL", ID, BUNDLE}:
            response = await stream.next()
            assert not response.removed_resources
            found |= set(secrets(response))
            await stream.ack(response)
        at.store.withdraw_svid(WEB)
        assert set((await stream.next()).removed_resources) == {"default", ID}
        await stream.ask("default")  # nothing was sent since
        await stream.silent()


async def test_a_removed_secret_is_told_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default", "ROOTCA")
        await stream.ack(await stream.next())
        at.store.withdraw_svid(WEB)
        response = await stream.next()
        assert list(response.removed_resources) == ["default"]
        assert not response.resources
        await stream.ack(response)
        at.store.put_bundle(TD, [root("two").der])
        response = await stream.next()
        assert not response.removed_resources
        await stream.ack(response)
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {"default"}


async def test_unsubscribed_names_are_not_pushed(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default", "ROOTCA")
        await stream.ack(await stream.next())
        await stream.ask(unsubscribe=["default"])
        await stream.silent()
        at.store.put_svid(svid())
        await stream.silent()
        at.store.put_bundle(TD, [root("two").der])
        assert set(secrets(await stream.next())) == {"ROOTCA"}
        stored = at.store.svid(WEB)
        assert stored is not None
        assert stored.svid.key_id not in at.store.held_keys()


async def test_a_name_subscribed_again_is_sent_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default")
        await stream.ack(await stream.next())
        await stream.ask("default")
        assert set(secrets(await stream.next())) == {"default"}
        await stream.ask("default", unsubscribe=["default"])
        assert set(secrets(await stream.next())) == {"default"}


async def test_a_stale_nonce_voids_the_ack_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default")
        await stream.next()
        await stream.ask("ROOTCA", unsubscribe=["default"], nonce="guessed")
        assert set(secrets(await stream.next())) == {"ROOTCA"}
        at.store.put_svid(svid())
        await stream.silent()
        assert at.tally.events[Event.STALE_NONCE] == 1
        assert at.tally.events[Event.ACK] == 0


async def test_a_nack_is_answered_by_silence_and_the_next_content_is_sent(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default")
        response = await stream.next()
        await stream.ask(nonce=response.nonce, error="no good")
        await stream.silent()
        assert at.tally.events[Event.NACK] == 1
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {"default"}


async def test_of_several_that_are_refused_only_the_bad_one_is_kept_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default", "ROOTCA")
        both = await stream.next()
        await stream.ask(nonce=both.nonce, error="one is bad")
        for name in ("ROOTCA", "default"):
            alone = await stream.next()
            assert set(secrets(alone)) == {name}
            assert not alone.removed_resources
            await stream.ask(nonce=alone.nonce, error="no good" if name == "ROOTCA" else None)
        await stream.silent()
        assert at.tally.events[Event.NACK] == 2
        assert at.tally.events[Event.ACK] == 1


@pytest.mark.parametrize("first", [(), ("*",)])
async def test_everything_by_long_names(tmp_path: Path, first: tuple[str, ...]) -> None:
    async with (
        serving(tmp_path, identities=(WEB, API)) as at,
        channel(at.target) as connection,
    ):
        stream = Delta(connection)
        await stream.ask(*first)
        response = await stream.next()
        assert set(secrets(response)) == {ID, str(API.spiffe_id), BUNDLE}
        await stream.ack(response)
        at.store.put_bundle(OTHER, [root("other").der])
        response = await stream.next()
        assert set(secrets(response)) == {f"spiffe://{OTHER}"}
        await stream.ack(response)
        # An ACK of a name that is gone by then has it told once more, which is no fault.
        while at.tally.events[Event.ACK] < 2:
            await asyncio.sleep(0.01)
        at.store.withdraw_svid(API)
        response = await stream.next()
        assert list(response.removed_resources) == [str(API.spiffe_id)]
        await stream.ack(response)
        await stream.ask(unsubscribe=["*"])
        await stream.silent()
        at.store.put_svid(svid(API))
        at.store.put_svid(svid(WEB))
        await stream.silent()


async def test_a_name_dropped_beside_the_wildcard_is_sent_again_or_removed(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("*", ID, "default")
        response = await stream.next()
        assert set(secrets(response)) == {ID, "default", BUNDLE}
        await stream.ack(response)
        await stream.ask(unsubscribe=[ID, "default"])
        response = await stream.next()
        assert set(secrets(response)) == {ID}
        assert list(response.removed_resources) == ["default"]
        await stream.ack(response)
        at.store.put_svid(svid())
        assert set(secrets(await stream.next())) == {ID}


async def test_initial_versions_all_known_are_not_sent_again(tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        async with channel(at.target) as connection:
            stream = Delta(connection)
            await stream.ask("default", "ROOTCA")
            response = await stream.next()
            kept = {resource.name: resource.version for resource in response.resources}
        async with channel(at.target) as connection:
            stream = Delta(connection)
            await stream.ask("default", "ROOTCA", initial=kept)
            await stream.silent()
            stored = at.store.svid(WEB)
            assert stored is not None
            assert stored.svid.key_id in at.store.held_keys()
            assert at.tally.events[Event.HELD] == 2
            at.store.put_svid(svid())
            assert set(secrets(await stream.next())) == {"default"}


async def test_initial_versions_outdated_and_gone(tmp_path: Path) -> None:
    async with serving(tmp_path, identities=(WEB, API)) as at:
        names = ("default", "ROOTCA", str(API.spiffe_id))
        async with channel(at.target) as connection:
            stream = Delta(connection)
            await stream.ask(*names)
            response = await stream.next()
            kept = {resource.name: resource.version for resource in response.resources}
        at.store.put_svid(svid(WEB))
        at.store.withdraw_svid(API)
        async with channel(at.target) as connection:
            stream = Delta(connection)
            await stream.ask(*names, initial=kept)
            response = await stream.next()
            assert set(secrets(response)) == {"default"}
            assert list(response.removed_resources) == [str(API.spiffe_id)]


async def test_initial_versions_under_the_wildcard(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        bundle = at.store.bundle(TD)
        assert bundle is not None
        stream = Delta(connection)
        await stream.ask(initial={BUNDLE: bundle.version, ID: "older", "gone": "1"})
        response = await stream.next()
        assert set(secrets(response)) == {ID}
        assert list(response.removed_resources) == ["gone"]


async def test_initial_versions_of_another_run_are_sent_again(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, name="a.sock") as at,
        channel(at.target) as connection,
    ):
        stream = Delta(connection)
        await stream.ask("ROOTCA")
        response = await stream.next()
        kept = {resource.name: resource.version for resource in response.resources}
    async with (
        serving(tmp_path, name="b.sock") as at,
        channel(at.target) as connection,
    ):
        stream = Delta(connection)
        await stream.ask("ROOTCA", initial=kept)
        assert set(secrets(await stream.next())) == {"ROOTCA"}


async def test_an_alias_follows_the_callers_first_identity(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        at.store.put_svid(svid(API))
        stream = Delta(connection)
        await stream.ask("default", ID)
        await stream.ack(await stream.next())
        at.entitlement.replace(Caller(name="web", selectors=frozenset(), identities=(API,)))
        response = await stream.next()
        assert set(secrets(response)) == {"default"}
        assert list(response.removed_resources) == [ID]


async def test_the_key_of_an_identity_that_a_name_stood_for_is_let_go(tmp_path: Path) -> None:
    """An identity changes with each Service that selects the pod, and streams live for months."""
    async with serving(tmp_path) as at, channel(at.target) as connection:
        at.store.put_svid(svid(API))
        stream = Delta(connection)
        await stream.ask("default")
        await stream.ack(await stream.next())
        old, new = at.store.svid(WEB), at.store.svid(API)
        assert old is not None
        assert new is not None
        assert old.svid.key_id in at.store.held_keys()
        at.entitlement.replace(Caller(name="web", selectors=frozenset(), identities=(API,)))
        response = await stream.next()
        assert old.svid.key_id in at.store.held_keys()  # until the client has taken the other one
        await stream.ack(response)
        await until(lambda: old.svid.key_id not in at.store.held_keys())
        assert new.svid.key_id in at.store.held_keys()


async def test_another_type_is_refused_with_what_is_served(tmp_path: Path) -> None:
    async with serving(tmp_path) as at, channel(at.target) as connection:
        stream = Delta(connection)
        await stream.ask("default", type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster")
        code, text = await stream.status()
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert SECRET in text
