"""An old policy, restored: refused while anybody remembers, else accepted until its end."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from securesystemslib.signer import SSlibKey

from sds.agent.policy_authorizations import PolicyAuthorizations
from sds.ca.signed_policy import SignedIssuancePolicy
from sds.errors import PolicyNotInForceError
from sds.identity import SpiffeId
from sds.policy import trust
from sds.policy.holder import PolicyHolder
from sds.policy.reload import PolicyFiles
from sds.policy.succession import PolicySuccession
from sds.policy.yaml_document import parse_payload
from tests.support.clock import FakeClock
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path

ALICE = Signatory("alice")
LIFE = timedelta(days=7)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Parties:
    """An agent and an authority; a restart forgets everything but the measured image."""

    def __init__(self, clock: FakeClock, *, min_epoch: int = 0) -> None:
        self.clock = clock
        self.min_epoch = min_epoch
        self.policies = {
            epoch: sign(
                document(
                    epoch,
                    not_before=(clock.wall - timedelta(days=1)).isoformat(),
                    not_after=(clock.wall + LIFE).isoformat(),
                ),
                ALICE,
            )
            for epoch in (1, 2)
        }

    def started(self, epoch: int) -> PolicyHolder:
        """A party that just started, with this policy on its disk."""
        memory = PolicySuccession(
            trust_domain=DOMAIN, trusted=trusting(ALICE), min_epoch=self.min_epoch
        )
        holder = PolicyHolder(memory, clock=self.clock)
        holder.take(self.policies[epoch], origin="disk")
        return holder


def exchange(agent: PolicyHolder, authority: PolicyHolder) -> None:
    """What the authority does before it issues anything."""
    SignedIssuancePolicy(authority).admit(
        digest=agent.digest, epoch=agent.epoch, document=agent.document
    )


def test_one_party_that_runs_is_enough(clock: FakeClock) -> None:
    parties = Parties(clock)
    agent, authority = parties.started(2), parties.started(2)
    assert agent.take(parties.policies[1], origin="disk").taken is None
    assert agent.epoch == 2
    # The authority restarts with the old one, and learns the new one from the agent.
    authority = parties.started(1)
    exchange(agent, authority)
    assert authority.epoch == 2
    # The agent restarts with the old one, and gets nothing until it takes the new one.
    agent = parties.started(1)
    with refused("policy_behind"):
        exchange(agent, authority)


def test_a_restart_of_everybody_brings_an_old_policy_back_until_its_end(clock: FakeClock) -> None:
    parties = Parties(clock)
    agent, authority = parties.started(1), parties.started(1)
    exchange(agent, authority)
    assert authority.in_force().epoch.number == 1
    clock.step((LIFE + timedelta(seconds=1)).total_seconds())
    with refused("policy_expired"):
        exchange(agent, authority)
    # A start after its end accepts it no more.
    with refused("policy_expired", "policy_absent"):
        exchange(parties.started(1), parties.started(1))


def test_the_measured_image_is_a_lower_bound(clock: FakeClock) -> None:
    parties = Parties(clock, min_epoch=2)
    with refused("policy_absent"):
        exchange(parties.started(1), parties.started(1))
    exchange(parties.started(2), parties.started(2))


@pytest.mark.parametrize("looked", [False, True])
async def test_who_was_told_that_a_policy_is_over_hears_that_it_is_not(
    clock: FakeClock, *, looked: bool
) -> None:
    """The clock was ahead for a moment, too short to be noticed, and an Envoy connected then."""
    holder = Parties(clock).started(1)
    told: list[str] = []
    holder.listen(lambda: told.append(holder.absence))
    running = asyncio.create_task(holder.run())
    try:
        await clock.advance(1)
        clock.step(365 * 86400)
        assert holder.absence
        if looked:
            await clock.settle()
            assert "expired" in told[-1]
        clock.step(-365 * 86400)
        if looked:
            assert not holder.absence
            await clock.settle()
        else:
            await clock.advance(60)
        assert told[-1] == ""
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_clock_that_was_ahead_ends_no_policy_for_good(clock: FakeClock) -> None:
    holder = Parties(clock).started(1)
    told: list[bool] = []

    def listener() -> None:
        try:
            holder.in_force()
        except PolicyNotInForceError:
            told.append(False)
        else:
            told.append(True)

    holder.listen(listener)
    running = asyncio.create_task(holder.run())
    try:
        await clock.advance(1)
        year = 365 * 86400
        clock.step(year)
        await clock.advance(70)
        assert told == [False]
        clock.step(-year)
        await clock.advance(70)
        assert told == [False, True]
        clock.step(LIFE.total_seconds())
        await clock.advance(70)
        assert told == [False, True, False]
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def test_a_clock_that_is_set_back_a_little_denies_nothing_that_policy_allows(
    clock: FakeClock,
) -> None:
    """Every party takes a policy of tomorrow at the same moment, and some clocks are corrected."""
    begins = clock.wall + timedelta(days=1)
    every = "spiffe://example.org/**"
    rules = document(
        3,
        not_before=begins.isoformat(),
        not_after=(begins + LIFE).isoformat(),
        allow=[{"from": every, "to": every}],
    )
    holder = PolicyHolder(
        PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE)), clock=clock
    )
    identity = SpiffeId.parse("spiffe://example.org/db")
    filters = PolicyAuthorizations(holder)
    assert holder.take(sign(rules, ALICE), origin="file").taken is None
    assert not filters.authorization(identity, now=clock.wall).enforced
    clock.step(86400)
    assert holder.take(sign(rules, ALICE), origin="file").taken is not None
    for step in (0, -3, 3):
        clock.step(step)
        assert holder.current is not None
        found = filters.authorization(identity, now=clock.wall)
        assert (found.epoch, len(found.enforced)) == (3, 1), step
    clock.step(LIFE.total_seconds())
    assert not filters.authorization(identity, now=clock.wall).enforced


async def test_what_was_refused_as_expired_is_offered_again_once_the_clock_is_right(
    clock: FakeClock, tmp_path: Path
) -> None:
    parties = Parties(clock)
    place = tmp_path / "policy.json"
    place.write_bytes(parties.policies[2])
    clock.step(365 * 86400)
    memory = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE))
    files = PolicyFiles(place, PolicyHolder(memory, clock=clock), clock=clock)
    files.load()
    with refused("policy_absent"):
        files.holder.in_force()
    await files._look()
    assert files.holder.epoch == 0
    clock.step(-365 * 86400)
    await files._look()
    assert files.holder.in_force().epoch.number == 2


async def test_what_the_authority_offers_does_not_end_the_wait_for_a_policy_of_tomorrow(
    clock: FakeClock, tmp_path: Path
) -> None:
    parties = Parties(clock)
    tomorrow = (clock.wall + timedelta(days=1)).isoformat()
    place = tmp_path / "policy.json"
    place.write_bytes(
        parties.policies[1]
        + sign(document(3, not_before=tomorrow, not_after=(clock.wall + LIFE).isoformat()), ALICE)
    )
    memory = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE))
    files = PolicyFiles(place, PolicyHolder(memory, clock=clock), clock=clock)
    files.load()
    files.holder.take(parties.policies[2], origin="authority")
    assert files.holder.epoch == 2
    clock.step(86400)
    await files._look()
    assert files.holder.epoch == 3


async def test_a_policy_of_tomorrow_that_was_taken_away_is_waited_for_without_haste(
    clock: FakeClock, tmp_path: Path
) -> None:
    parties = Parties(clock)
    tomorrow = (clock.wall + timedelta(days=1)).isoformat()
    later = document(3, not_before=tomorrow, not_after=(clock.wall + LIFE).isoformat())
    place = tmp_path / "policy.json"
    place.write_bytes(parties.policies[1] + sign(later, ALICE))
    memory = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE))
    files = PolicyFiles(place, PolicyHolder(memory, clock=clock), clock=clock)
    files.load()
    kept = place.read_bytes()
    place.unlink()
    clock.step(86400)
    assert files._wait() == 0  # its time has come
    await files._look()
    assert files._wait() == 60  # there is nothing to look at before something happens
    place.write_bytes(kept)
    await files._look()
    assert files.holder.epoch == 3


async def test_an_old_policy_that_callers_send_again_and_again_is_read_once(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    parties = Parties(clock)
    memory = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE))
    holder = PolicyHolder(memory, clock=clock)
    assert holder.take(parties.policies[2], origin="file").taken is not None
    read: list[bytes] = []

    def parse(raw: bytes) -> Any:
        read.append(raw)
        return parse_payload(raw)

    monkeypatch.setattr(trust, "parse_payload", parse)
    later = (clock.wall + timedelta(days=1)).isoformat()
    future = sign(document(9, not_before=later, not_after=(clock.wall + LIFE).isoformat()), ALICE)
    reasons = set()
    for spaces in range(1, 9):  # the signature is over the document, and not over these
        for policy in (parties.policies[1], parties.policies[2], future):
            sent = policy.replace(b"{", b"{" + b" " * spaces, 1)
            for garbage in (b"", b'{"no": "envelope"}\n'):
                outcome = holder.take_from_stranger(sent + garbage)
                assert outcome.taken is None
                reasons.add(outcome.refusal and outcome.refusal.reason)
    assert reasons == {None, "policy_epoch_lower", "policy_not_yet_valid", "policy_malformed"}
    assert len(read) == 2  # the old one, and the one of tomorrow; that in force was read before
    # Its time comes, and it is taken.
    clock.step(86400)
    assert holder.take_from_stranger(future).taken is not None
    assert holder.epoch == 9


async def test_one_forged_signature_of_a_caller_costs_one(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes as long as evidence, and 64 envelopes with three each fit into 800 bytes."""
    parties = Parties(clock)
    memory = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE))
    holder = PolicyHolder(memory, clock=clock)
    forged = b"".join(
        sign(document(number), ALICE).replace(b'"sig":"', b'"sig":"AAAA', 1) + b"\n"
        for number in range(3, 40)
    )
    checked: list[bytes] = []
    verify = SSlibKey.verify_signature

    def counted(key: SSlibKey, signature: Any, data: bytes) -> None:
        checked.append(data)
        verify(key, signature, data)

    monkeypatch.setattr(SSlibKey, "verify_signature", counted)
    refusal = holder.take_from_stranger(forged).refusal
    assert refusal is not None
    assert refusal.reason == "policy_unsigned"
    assert len(checked) == 1
    assert not await holder.offer(forged)  # its authority may have turned hostile
    assert len(checked) == 2
    # What came before it counts, and an operator's files are read as a whole.
    assert holder.take_from_stranger(parties.policies[1] + forged).taken is not None
    assert holder.take(forged + parties.policies[2], origin="file").taken is not None


def test_a_policy_below_the_floor_is_read_once_where_none_is_in_force(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Parties(clock).policies[1]
    start = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE), min_epoch=5)
    holder = PolicyHolder(start, clock=clock)
    read: list[bytes] = []

    def parse(raw: bytes) -> Any:
        read.append(raw)
        return parse_payload(raw)

    monkeypatch.setattr(trust, "parse_payload", parse)
    for spaces in range(4):
        refusal = holder.take_from_stranger(old.replace(b"{", b"{" + b" " * spaces, 1)).refusal
        assert refusal is not None
        assert refusal.reason == "policy_epoch_lower"
    assert len(read) == 1
