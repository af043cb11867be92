"""Session ticket keys, generic secrets and the seam for policy, against a running server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sds.secrets.store import SecretStore
from sds.serving.encode import NOBODY, pem
from sds.serving.generic_secrets import GenericSecretFiles
from sds.serving.peer_policy import PeerContext, SanMatcher
from sds.serving.secret_catalog import Aliases
from sds.serving.service import ServingOptions
from tests.conformance.test_sotw import validator
from tests.support.certificates import ca_wish
from tests.support.serving import OTHER, TD, root, serving, svid, ticket_keys
from tests.support.xds_client import Delta, Sotw, channel, fetch, secrets

if TYPE_CHECKING:
    from sds.identity import TrustDomain
    from sds.workload.entitlement import Caller

pytestmark = pytest.mark.usefixtures("transport")


async def test_ticket_keys_are_replaced_before_a_changed_bundle_and_not_part_of_everything(
    tmp_path: Path,
) -> None:
    store = SecretStore()
    tickets = ticket_keys(store)
    options = ServingOptions(tickets=tickets)
    async with (
        serving(tmp_path, options=options, store=store) as at,
        channel(at.target) as connection,
    ):
        stream = Delta(connection)
        await stream.ask("ROOTCA", "session_tickets", "default")
        response = await stream.next()
        await stream.ack(response)
        before = [
            key.inline_bytes
            for key in secrets(response)["session_tickets"].session_ticket_keys.keys
        ]
        assert [len(key) for key in before] == [80]

        tickets.rotate()
        at.service.refresh(trust_changed=False)
        response = await stream.next()
        assert set(secrets(response)) == {"session_tickets"}
        rotated = secrets(response)["session_tickets"].session_ticket_keys.keys
        assert [key.inline_bytes for key in rotated][1:] == before
        await stream.ack(response)

        at.store.put_svid(svid())  # no change of trust: the keys stay
        assert set(secrets(await stream.next())) == {"default"}

        bundle, keys = Sotw(connection), Sotw(connection)
        await bundle.get("ROOTCA")
        await keys.get("session_tickets")
        at.store.put_bundle(TD, [root("two").der])
        for name, one in (("session_tickets", keys), ("ROOTCA", bundle)):
            response = await one.next()
            assert set(secrets(response)) == {name}
        fresh = secrets(await stream.next())
        assert set(fresh) == {"session_tickets", "ROOTCA"}
        new = {key.inline_bytes for key in fresh["session_tickets"].session_ticket_keys.keys}
        assert len(new) == 1
        assert not new & {key.inline_bytes for key in rotated}

        everything = Sotw(connection)
        assert "session_tickets" not in secrets(await everything.get())


async def test_a_generic_secret_follows_its_file(tmp_path: Path) -> None:
    descriptor = os.memfd_create("token")
    os.write(descriptor, b"one")
    path = Path(f"/proc/self/fd/{descriptor}")
    store = SecretStore()
    generic = GenericSecretFiles(store, files={"web": {"token": path}}, aliases=Aliases())
    options = ServingOptions(generic=generic)
    async with (
        serving(tmp_path, options=options, store=store) as at,
        channel(at.target) as connection,
    ):
        stream = Sotw(connection)
        response = await stream.get("token")
        assert secrets(response)["token"].generic_secret.secret.inline_bytes == b"one"
        path.write_bytes(b"two")
        assert generic.reload()
        at.service.refresh(trust_changed=False)
        response = await stream.next()
        assert secrets(response)["token"].generic_secret.secret.inline_bytes == b"two"
        everything = Sotw(connection)
        assert "token" in secrets(await everything.get())


class Policy:
    """A policy by hand."""

    def __init__(self) -> None:
        self.inbound_matchers: tuple[SanMatcher, ...] = (
            SanMatcher("exact", "spiffe://example.org/api"),
            SanMatcher("regex", "spiffe://example.org/jobs/[^/]+"),
        )
        self.domains: tuple[TrustDomain, ...] = (TD,)

    def inbound(self, _caller: Caller) -> PeerContext | None:
        return PeerContext(matchers=self.inbound_matchers, trust_domains=self.domains)

    def outbound(self, _caller: Caller, target: str) -> PeerContext | None:
        if target != "db":
            return None
        return PeerContext(
            matchers=(SanMatcher("exact", "spiffe://example.org/db"),), trust_domains=(TD,)
        )


async def test_contexts_by_policy(tmp_path: Path) -> None:
    policy = Policy()
    options = ServingOptions(peers=policy)
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        response = await stream.get("inbound", "outbound:db", "outbound:unknown")
        found = secrets(response)
        assert set(found) == {"inbound", "outbound:db"}
        context = found["inbound"].validation_context
        assert context.trusted_ca.inline_bytes == pem([root("one").der])
        exact, regex = context.match_typed_subject_alt_names
        assert exact.matcher.exact == "spiffe://example.org/api"
        assert regex.matcher.safe_regex.regex == "spiffe://example.org/jobs/[^/]+"
        (other,) = found["outbound:db"].validation_context.match_typed_subject_alt_names
        assert other.matcher.exact == "spiffe://example.org/db"

        policy.inbound_matchers = ()
        at.service.refresh()
        response = await stream.next()
        context = secrets(response)["inbound"].validation_context
        assert set(secrets(response)) == {"inbound"}, "the other context has not changed"
        assert [m.matcher.exact for m in context.match_typed_subject_alt_names] == [NOBODY]
        await stream.ack(response, "inbound", "outbound:db", "outbound:unknown")
        at.service.refresh()
        await stream.silent()

        at.store.put_bundle(OTHER, [root("other").der])
        await stream.silent()
        policy.domains = (TD, OTHER)
        at.service.refresh()
        response = await stream.next()
        assert list(validator(secrets(response)["inbound"])) == [TD, OTHER]
        assert secrets(response)["inbound"].validation_context.match_typed_subject_alt_names


async def test_our_roots_vouch_for_no_foreign_name_while_the_foreign_bundle_is_missing(
    tmp_path: Path,
) -> None:
    policy = Policy()
    policy.domains = (TD, OTHER)
    policy.inbound_matchers += (SanMatcher("exact", f"spiffe://{OTHER}/gate"),)
    options = ServingOptions(peers=policy)
    async with serving(tmp_path, options=options) as at, channel(at.target) as connection:
        stream = Sotw(connection)
        found = secrets(await stream.get("inbound"))["inbound"]
        assert not found.validation_context.trusted_ca.inline_bytes
        assert list(validator(found)) == [TD]
        at.store.put_bundle(OTHER, [root("other").der])
        at.service.refresh()
        assert list(validator(secrets(await stream.next())["inbound"])) == [TD, OTHER]


# --- anchors that are no roots ------------------------------------------------------------------


async def test_an_intermediate_as_anchor_is_served_where_it_works_only(tmp_path: Path) -> None:
    middle = root("one").issue(ca_wish("middle")).der
    async with serving(tmp_path, empty=True) as at, channel(at.target) as connection:
        at.store.put_bundle(TD, [middle])
        answer = secrets(await fetch(connection, "ROOTCA", "ALL"))
        assert set(answer) == {"ROOTCA"}  # a plain context accepts partial chains
        assert pem([middle]) == answer["ROOTCA"].validation_context.trusted_ca.inline_bytes
        at.store.put_bundle(OTHER, [root("two").der])
        answer = secrets(await fetch(connection, "ALL"))
        assert set(validator(answer["ALL"])) == {OTHER}
        at.store.put_bundle(TD, [middle, root("one").der])
        answer = secrets(await fetch(connection, "ALL"))
        assert set(validator(answer["ALL"])) == {OTHER, TD}
