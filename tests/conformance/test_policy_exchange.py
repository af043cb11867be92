"""Signed policy between a real authority and real clients: behind, ahead, rolled back."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sds import errors
from sds.attestation.reference_values import ReferenceValues
from sds.authority.attested import AttestedAuthority
from sds.ca.registration import RegistrationAuthority
from sds.ca.signed_policy import SignedIssuancePolicy
from sds.clock import Instant, SystemClock
from sds.exchange.item import IssuedChain
from sds.policy.holder import PolicyHolder
from sds.policy.succession import PolicySuccession
from sds.policy.verification import PolicyVerifier, Role
from tests.support.authority import (
    AGENT,
    AUTHORITY,
    Machine,
    MachineVerifier,
    World,
    identity,
    items,
    wish,
)
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting
from tests.support.refusals import refused

if TYPE_CHECKING:
    from sds._proto.sds.ca.v1 import ca_pb2
    from sds.attestation.evidence import Evidence, ReportData
    from sds.policy.envelope import SignedPolicy

ALICE, BOB, MALLORY = (Signatory(name) for name in ("alice", "bob", "mallory"))
GRANTS = [
    {
        "name": "nodes",
        "measurements": [AGENT],
        "grants": [
            {
                "spiffe_ids": "spiffe://example.org/ns/*/sa/web",
                "dns_names": ["**.test"],
                "max_lifetime": "2m",
            }
        ],
    }
]


@dataclass
class ShiftedClock:
    """The system's clock, moved."""

    shift: timedelta = timedelta(0)
    inner: SystemClock = field(default_factory=SystemClock)

    def now(self) -> Instant:
        now = self.inner.now()
        return Instant(wall=now.wall + self.shift, monotonic=now.monotonic, boottime=now.boottime)

    async def sleep(self, seconds: float) -> None:
        await self.inner.sleep(seconds)


def epoch(number: int, *signatories: Signatory, **fields: Any) -> SignedPolicy:
    now = datetime.now(UTC)
    window = {
        "not_before": (now - timedelta(days=1)).isoformat(),
        "not_after": (now + timedelta(days=1)).isoformat(),
    }
    fields = {"nodes": GRANTS, **window, **fields}
    return sign(document(number, **fields), *(signatories or (ALICE,)))


def party(
    *offered: bytes, by: Signatory = ALICE, clock: ShiftedClock | None = None
) -> PolicyHolder:
    """A party that starts (again) with what its disk offers."""
    start = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(by))
    holder = PolicyHolder(start, clock=clock or ShiftedClock())
    if offered:
        holder.take(b"\n".join(offered), origin="disk")
    return holder


class Mesh:
    """One authority that lives, and agents that ask it."""

    def __init__(self, world: World, port: int) -> None:
        self.world = world
        self.port = port

    @contextlib.asynccontextmanager
    async def agent(self, holder: PolicyHolder | None, **changes: Any) -> Any:
        async with self.world.client(self.port, policy=holder, **changes) as client:
            yield client


@contextlib.asynccontextmanager
async def mesh(holder: PolicyHolder) -> Any:
    world = World()
    async with world.running(policy=SignedIssuancePolicy(holder)) as authority:
        yield Mesh(world, authority.port)


async def ask(client: AttestedAuthority, path: str = "/ns/a/sa/web", **changes: Any) -> str:
    """Ask for one certificate; the reason of the refusal, or the empty string."""
    wanted = [wish(identity(path, **changes))]
    try:
        issuance = await client.issue(items(wanted))
    except errors.AuthorityRefusedError as error:
        return error.wire_reason
    (outcome,) = issuance.outcomes
    return outcome.wire_reason if isinstance(outcome, errors.AuthorityRefusedError) else ""


ONE, TWO, THREE = (epoch(number) for number in (1, 2, 3))


async def test_equals_get_what_policy_grants_and_nothing_else() -> None:
    async with mesh(party(TWO)) as at, at.agent(party(TWO)) as client:
        assert await ask(client) == ""
        assert await ask(client, "/ns/a/sa/other") == "spiffe_id_not_allowed"
        assert await ask(client, dns_names=("x.org",)) == "dns_name_not_allowed"
        other = Machine("bb" * 48, at.world.agent.key)
        at.world.agent.measurement = other.measurement
        assert await ask(client) != ""


async def test_an_agent_that_is_behind_is_healed_before_anything_is_issued() -> None:
    behind = party(ONE)
    async with mesh(party(THREE)) as at, at.agent(behind) as client:
        assert await ask(client) == ""
        assert behind.epoch == 3
    # Its disk still offers the old one: refused, by what it has seen.
    outcome = behind.take(ONE, origin="disk")
    assert outcome.refusal is not None
    assert outcome.refusal.reason == "policy_epoch_lower"
    # Restarted alone with that disk, it is healed again.
    again = party(ONE)
    assert again.epoch == 1
    async with mesh(party(THREE)) as at, at.agent(again) as client:
        assert await ask(client) == ""
        assert again.epoch == 3


async def test_a_policy_that_comes_while_evidence_is_made_conflicts_with_nothing() -> None:
    holder = party(ONE)

    class Slow:
        """Its evidence takes until the agent has the next policy."""

        def __init__(self, inner: Machine) -> None:
            self.inner = inner

        async def attest(self, data: ReportData) -> Evidence:
            evidence = await self.inner.attest(data)
            if holder.epoch == 1:
                assert holder.take(TWO, origin="disk").refusal is None
            return evidence

    async with (
        mesh(party(TWO)) as at,
        at.agent(holder, attester=Slow(at.world.agent)) as client,
    ):
        assert await ask(client) == ""
    assert holder.epoch == 2


async def test_an_authority_that_was_restarted_with_an_old_policy_is_healed_by_an_agent() -> None:
    authority, honest, rolled_back = party(ONE), party(THREE), party(ONE)
    async with mesh(authority) as at:
        async with at.agent(honest) as client:
            assert await ask(client) == ""
        assert authority.epoch == 3
        assert honest.epoch == 3
        # And from then on nothing is issued under the old one.
        async with at.agent(rolled_back) as client:
            assert await ask(client) == ""
        assert rolled_back.epoch == 3
        assert all(record.policy_epoch == 3 for record in at.world.journal)


async def test_an_agent_that_wants_no_certificate_learns_a_later_policy() -> None:
    """A node without pods, or one whose pods stay long: `sds admission` follows its policy."""
    authority, agent = party(ONE), party(ONE)
    async with mesh(authority) as at, at.agent(agent) as client:
        await client.roots()
        authority.take(TWO, origin="disk")
        roots = await client.roots()
        assert agent.epoch == 2
        assert len(roots) == 1
        reports = at.world.agent.reports
        await client.roots()  # nothing is new: no evidence is made for it
        assert at.world.agent.reports == reports
    assert not any(record.reason == "issued" for record in at.world.journal)


async def test_an_authority_that_hands_over_no_policy_alone_still_gives_roots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As earlier versions do, it ends the stream at a request without items."""
    check = RegistrationAuthority.check_size

    def check_size(self: RegistrationAuthority, request: ca_pb2.CertificateRequest) -> None:
        if not request.items:
            raise errors.RefusedError("the request has no items", reason="request_malformed")
        check(self, request)

    monkeypatch.setattr(RegistrationAuthority, "check_size", check_size)
    authority, agent = party(ONE), party(ONE)
    async with mesh(authority) as at, at.agent(agent) as client:
        before = await client.roots()
        authority.take(TWO, origin="disk")
        for _ in range(2):
            assert await client.roots() == before
        assert agent.epoch == 1
        assert await ask(client) == ""  # with a certificate comes the policy
        assert agent.epoch == 2
        assert await client.roots() == before


async def test_roots_count_only_under_the_policy_that_was_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    authority, agent = party(ONE), party(ONE)
    hello: Any = AttestedAuthority._hello

    async def _hello(self: AttestedAuthority, *session: Any, **how: Any) -> None:
        if agent.epoch == 2:
            raise errors.AuthorityUnavailableError("it has gone")
        await hello(self, *session, **how)

    monkeypatch.setattr(AttestedAuthority, "_hello", _hello)
    async with mesh(authority) as at, at.agent(agent) as client:
        await client.roots()
        authority.take(TWO, origin="disk")
        with pytest.raises(errors.AuthorityUnavailableError, match="it has gone"):
            await client.roots()
        assert agent.epoch == 2


async def test_news_cost_an_agent_that_follows_no_policy_no_evidence() -> None:
    async with mesh(party(TWO)) as at, at.agent(None) as client:
        await client.roots()
        assert at.world.agent.reports == 0


class Stubborn(PolicyHolder):
    """An agent that will not take what the authority hands down."""

    async def offer(self, document: bytes) -> bool:
        return not document


async def test_nothing_is_issued_to_an_agent_that_stays_behind() -> None:
    stubborn = Stubborn(
        PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE)), clock=ShiftedClock()
    )
    stubborn.take(ONE, origin="disk")
    # One without policy, one with other keys, one that will not.
    async with mesh(party(THREE)) as at:
        for agent in (None, party(by=BOB), stubborn):
            async with at.agent(agent) as client:
                assert await ask(client) == "policy_behind"
        assert not any(record.reason == "issued" for record in at.world.journal)
        # One that merely started with nothing is healed.
        async with at.agent(party()) as client:
            assert await ask(client) == ""


async def test_an_agent_cannot_push_what_is_not_signed() -> None:
    authority = party(TWO)
    forged = party(epoch(9, MALLORY), by=MALLORY)
    async with mesh(authority) as at, at.agent(forged) as client:
        assert await ask(client) == "policy_unsigned"
    assert authority.epoch == 2


async def test_two_policies_of_one_epoch() -> None:
    async with (
        mesh(party(TWO)) as at,
        at.agent(party(epoch(2, description="other"))) as client,
    ):
        assert await ask(client) == "policy_epoch_conflict"


async def test_everyone_rolled_back_ends_with_the_window() -> None:
    later = ShiftedClock()
    authority, agent = party(ONE, clock=later), party(ONE, clock=later)
    async with mesh(authority) as at, at.agent(agent) as client:
        assert await ask(client) == ""
        later.shift = timedelta(days=2)
        assert await ask(client) == "policy_expired"
        with refused("policy_expired"):
            agent.in_force()


async def test_without_any_policy_nothing_is_issued() -> None:
    async with mesh(party()) as at, at.agent(party()) as client:
        assert await ask(client) == "policy_absent"


async def test_new_signers_are_handed_down_with_the_line_that_leads_to_them() -> None:
    keys = [{"name": "bob", "public_key": BOB.public.pem}]
    turn = epoch(4, ALICE, BOB, signers={"threshold": 1, "keys": keys})
    ahead, behind = party(turn, epoch(5, BOB)), party(ONE)
    async with mesh(ahead) as at, at.agent(behind) as client:
        assert await ask(client) == ""
    assert behind.epoch == 5
    authority = party(TWO)
    async with mesh(authority) as at, at.agent(behind) as client:
        assert await ask(client) == ""
    assert authority.epoch == 5


async def test_a_large_policy_is_handed_over() -> None:
    rules = [
        {"from": f"spiffe://example.org/a/{number}", "to": f"spiffe://example.org/b/{number}"}
        for number in range(5_000)
    ]
    agent, authority = party(ONE), party(epoch(2, allow=rules))
    async with mesh(authority) as at, at.agent(agent) as client:
        assert await ask(client) == ""
        assert agent.epoch == 2
        authority.take(THREE, origin="test")
        assert await asyncio.wait_for(ask(client), 30) == ""
        assert agent.epoch == 3


async def test_a_policy_that_changes_on_an_open_stream_holds_from_the_next_request_on() -> None:
    authority, agent = party(TWO), party(TWO)
    async with mesh(authority) as at, at.agent(agent) as client:
        assert await ask(client) == ""
        without = epoch(3, nodes=[{**GRANTS[0], "measurements": ["dd" * 48]}])
        authority.take(without, origin="test")
        assert await ask(client) == "measurement_not_allowed"
        assert agent.epoch == 3
        agent.take(epoch(4), origin="test")
        assert await ask(client) == ""
        assert authority.epoch == 4


async def test_an_authority_without_the_policy_keeps_nobody_from_one_that_has_it() -> None:
    world, agent = World(), party()
    async with (
        world.running() as without,
        world.running(policy=SignedIssuancePolicy(party(TWO))) as following,
        world.client(without.port, following.port, policy=agent, shuffle=lambda _: None) as client,
    ):
        issuance = await client.issue(items([wish()]))
        assert agent.epoch == 2
        assert client.connected_to == f"127.0.0.1:{following.port}"
        assert isinstance(issuance.outcomes[0], IssuedChain)
        assert set(issuance.roots) == set(following.signing.roots)


def trusted_under(holder: PolicyHolder, world: World) -> PolicyVerifier:
    """Trusts the authorities that the policy in force names, of this world's chip."""

    def make(values: ReferenceValues) -> MachineVerifier:
        accepted = {*values.measurements} or {AUTHORITY, OLD_AUTHORITY}
        return MachineVerifier([world.authority.key.public_key()], accepted)

    return PolicyVerifier(holder, role=Role.AUTHORITIES, configured=ReferenceValues(), make=make)


def naming(number: int, *authorities: str) -> SignedPolicy:
    return epoch(number, reference_values={"authorities": {"measurements": [*authorities]}})


OLD_AUTHORITY = "ce" * 48


async def test_an_authority_that_the_next_policy_does_not_name_issues_nothing_under_it() -> None:
    """Whether it hands that policy over itself, or the agent has it from its file."""
    for before in (naming(1, OLD_AUTHORITY, AUTHORITY), epoch(1)):
        world = World()
        world.authority.measurement = OLD_AUTHORITY
        authority = party(naming(2, AUTHORITY))
        agent = party(before)
        async with world.running(policy=SignedIssuancePolicy(authority)) as running:
            verifier = trusted_under(agent, world)
            async with world.client(running.port, policy=agent, verifier=verifier) as client:
                with pytest.raises(errors.EvidenceError, match=OLD_AUTHORITY):
                    await client.issue(items([wish()]))
                assert agent.epoch == 2
                assert client.connected_to is None
        world = World()
        world.authority.measurement = OLD_AUTHORITY
        agent = party(before)
        async with world.running() as running:  # it asks for nobody's policy
            verifier = trusted_under(agent, world)
            async with world.client(running.port, policy=agent, verifier=verifier) as client:
                assert await ask(client) == ""
                agent.take(naming(2, AUTHORITY), origin="disk")
                with pytest.raises(errors.EvidenceError, match=OLD_AUTHORITY):
                    await client.issue(items([wish()]))
                agent.take(naming(3, AUTHORITY, OLD_AUTHORITY), origin="disk")
                assert await ask(client) == ""


async def test_a_replica_that_the_next_policy_names_is_asked_at_once() -> None:
    world = World()
    agent = party(naming(1, OLD_AUTHORITY, AUTHORITY))
    old = Machine(OLD_AUTHORITY, key=world.authority.key)
    async with (
        world.running(attester=old) as before,
        world.running() as named,
        world.client(
            before.port,
            named.port,
            policy=agent,
            verifier=trusted_under(agent, world),
            shuffle=lambda _: None,
        ) as client,
    ):
        assert await ask(client) == ""
        assert client.connected_to == f"127.0.0.1:{before.port}"
        agent.take(naming(2, AUTHORITY), origin="disk")
        assert await ask(client) == ""
        assert client.connected_to == f"127.0.0.1:{named.port}"


async def test_an_answer_counts_only_if_a_policy_that_came_meanwhile_names_who_gave_it() -> None:
    world = World()
    world.authority.measurement = OLD_AUTHORITY
    agent = party(epoch(1))

    class Takes(Machine):
        async def attest(self, data: ReportData) -> Evidence:
            agent.take(naming(2, AUTHORITY), origin="disk")
            return await super().attest(data)

    attester = Takes(AGENT, key=world.agent.key)
    async with (
        world.running() as running,
        world.client(
            running.port, policy=agent, verifier=trusted_under(agent, world), attester=attester
        ) as client,
    ):
        with pytest.raises(errors.EvidenceError, match=OLD_AUTHORITY):
            await client.issue(items([wish()]))


async def test_without_a_policy_in_force_no_authority_s_certificates_or_roots_count() -> None:
    """Who may be an authority is not known then, and both would outlast the wait for a policy."""
    for holder in (party(), party(ONE, clock=(clock := ShiftedClock()))):
        clock.shift = timedelta(days=2)
        world = World()
        async with world.running() as running, world.client(running.port, policy=holder) as client:
            with pytest.raises(errors.AuthorityAnswerError, match="and here"):
                await client.issue(items([wish()]))
            with pytest.raises(errors.PolicyNotInForceError):
                await client.roots()
            later = datetime.now(UTC) + timedelta(days=9)
            holder.take(epoch(2, not_after=later.isoformat()), origin="disk")
            assert await ask(client) == ""
            assert await client.roots()


async def test_the_policy_is_not_handed_to_whoever_has_no_evidence() -> None:
    stranger = Machine(AGENT)
    agent = party(ONE)
    async with mesh(party(THREE)) as at, at.agent(agent, attester=stranger) as client:
        assert await ask(client) not in {"", "policy_behind"}
    assert agent.epoch == 1
