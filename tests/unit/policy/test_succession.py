"""Which policy is in force, offer by offer."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sds.errors import PolicyError
from sds.policy.envelope import SignedPolicy
from sds.policy.succession import OfferOutcome, PolicySuccession, offer, resumed, split
from tests.support.policies import DOMAIN, NOW, Signatory, document, sign, trusting
from tests.support.refusals import refused

ALICE, BOB, CAROL, MALLORY = (Signatory(name) for name in ("alice", "bob", "carol", "mallory"))
LATER = datetime(2026, 7, 1, tzinfo=UTC)
NAMED = "2026-07-01T00:00:00Z"


def fresh(*signatories: Signatory, **fields: Any) -> PolicySuccession:
    return PolicySuccession(
        trust_domain=DOMAIN, trusted=trusting(*(signatories or (ALICE,))), **fields
    )


def step(
    state: PolicySuccession, *signed: SignedPolicy, now: datetime = NOW
) -> tuple[PolicySuccession, OfferOutcome, str]:
    after, outcome = offer(state, signed, now=now)
    return after, outcome, outcome.refusal.reason if outcome.refusal else ""


def epoch(state: PolicySuccession) -> int:
    return 0 if state.seen is None else state.seen.number


def named(*signatories: Signatory) -> dict[str, Any]:
    keys = [{"name": one.name, "public_key": one.public.pem} for one in signatories]
    return {"threshold": 1, "keys": keys}


ONE, TWO, THREE = (sign(document(number), ALICE) for number in (1, 2, 3))


def test_the_epoch_rises_and_never_falls() -> None:
    state, outcome, reason = step(fresh(), TWO)
    assert (epoch(state), reason) == (2, "")
    assert outcome.taken is state.policy
    same, outcome, reason = step(state, ONE)
    assert same is state
    assert reason == "policy_epoch_lower"
    state, _, _ = step(state, ONE, THREE, TWO)
    assert epoch(state) == 3
    state, outcome, reason = step(state, THREE)
    assert (outcome.taken, reason) == (None, "")


def test_equal_epoch_with_other_content_changes_nothing() -> None:
    state, _, _ = step(fresh(), TWO)
    same, _, reason = step(state, sign(document(2, description="other"), ALICE))
    assert (same, reason) == (state, "policy_epoch_conflict")


def test_two_of_one_epoch_together_are_both_refused() -> None:
    twin = sign(document(2, description="other"), ALICE)
    state, _, reason = step(fresh(), TWO, twin)
    assert (epoch(state), reason) == (0, "policy_epoch_conflict")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (sign(document(9), MALLORY), "policy_unsigned"),
        (sign(document(9, trust_domain="other.org"), ALICE), "policy_trust_domain"),
        (sign(document(9, not_after="2026-05-01T00:00:00Z"), ALICE), "policy_expired"),
        (sign(document(9, not_before=NAMED), ALICE), "policy_not_yet_valid"),
        (SignedPolicy(b"{"), "policy_malformed"),
        (SignedPolicy(b"epoch: 9"), "policy_unsigned"),
    ],
)
def test_what_is_refused_leaves_the_last_good_in_force(bad: SignedPolicy, reason: str) -> None:
    state, _, _ = step(fresh(), TWO)
    for pool in ([bad], [bad, TWO], [TWO, bad]):
        same, outcome, said = step(state, *pool)
        assert (same, outcome.taken, said) == (state, None, reason)
    assert step(fresh(), bad)[2] == reason
    # Beside a good one it is said, and the good one is taken.
    state, outcome, said = step(fresh(), bad, TWO)
    assert (epoch(state), said) == (2, reason)


def test_the_last_good_ends_with_its_window() -> None:
    state, _, _ = step(fresh(), TWO)
    end = datetime(2027, 1, 1, tzinfo=UTC)
    assert state.in_force(end - timedelta(seconds=1)) is state.policy
    with refused("policy_expired"):
        state.in_force(end)
    with refused("policy_absent"):
        fresh().in_force(NOW)
    # Also then no lower epoch comes back.
    older = sign(document(1, not_after="2028-01-01T00:00:00Z"), ALICE)
    assert step(state, older, now=end)[2] == "policy_epoch_lower"


def test_a_policy_of_tomorrow_is_taken_tomorrow() -> None:
    tomorrow = sign(document(3, not_before=NAMED), ALICE)
    state, outcome, _ = step(fresh(), TWO, tomorrow)
    assert epoch(state) == 2
    assert outcome.retry_at == LATER
    state, outcome, _ = step(state, TWO, tomorrow, now=LATER)
    assert (epoch(state), outcome.retry_at) == (3, None)


def test_the_floor_of_the_configuration() -> None:
    assert step(fresh(min_epoch=2), ONE)[2] == "policy_epoch_lower"
    assert step(fresh(min_epoch=2), TWO)[2] == ""


TURN = sign(document(4, signers=named(BOB)), ALICE, BOB)
FIVE_BY_BOB = sign(document(5), BOB)


def test_signers_change_by_a_policy() -> None:
    state, _, _ = step(fresh(), TURN)
    assert (epoch(state), state.trusted, state.trusted_since) == (4, trusting(BOB), 4)
    assert step(state, sign(document(9), ALICE))[2] == "policy_unsigned"
    state, _, _ = step(state, FIVE_BY_BOB)
    assert epoch(state) == 5
    # Whoever starts with the first keys gets there by what is handed over, in any order.
    handed = split(state.handover)
    assert [*handed] == [TURN, FIVE_BY_BOB]
    for pool in (handed, handed[::-1]):
        other, _, reason = step(fresh(), *pool)
        assert (other.policy, other.trusted, reason) == (state.policy, state.trusted, "")
    # Without the link it does not.
    assert step(fresh(), FIVE_BY_BOB)[2] == "policy_unsigned"
    # Whoever was configured with the new keys takes it too.
    assert epoch(step(fresh(BOB), *handed)[0]) == 5
    # To offer it again is not an error.
    assert step(state, *handed)[2] == ""


def test_former_signers_no_longer_count_beside_the_link() -> None:
    late = sign(document(9), ALICE)
    state, _, reason = step(fresh(), TURN, late)
    assert (epoch(state), reason) == (4, "policy_unsigned")


def test_two_turns_and_an_expired_link() -> None:
    turn = sign(document(4, signers=named(BOB), not_after="2026-02-01T00:00:00Z"), ALICE, BOB)
    second = sign(document(6, signers=named(CAROL)), BOB, CAROL)
    last = sign(document(7), CAROL)
    state, _, reason = step(fresh(), last, turn, second)
    assert (epoch(state), state.trusted, reason) == (7, trusting(CAROL), "")
    assert step(fresh(), *split(state.handover))[0].policy == state.policy
    # A turn back to former signers by an old link is not a way.
    evil = sign(document(9), BOB)
    assert epoch(step(state, turn, evil)[0]) == 7


def test_a_link_of_tomorrow_does_not_count_today() -> None:
    turn = sign(document(4, signers=named(BOB), not_before=NAMED), ALICE, BOB)
    state, _, _ = step(fresh(), TWO, turn, FIVE_BY_BOB)
    assert (epoch(state), state.trusted) == (2, trusting(ALICE))
    assert epoch(step(state, TWO, turn, FIVE_BY_BOB, now=LATER)[0]) == 5


def test_a_party_that_missed_a_change_of_signers_follows_the_one_before() -> None:
    """The price of a chain that may leave epochs out: docs/policy.md, "Key ceremonies"."""
    to_bob = sign(document(2, signers=named(BOB)), ALICE, BOB)
    to_carol = sign(document(3, signers=named(CAROL)), BOB, CAROL)
    stolen = sign(document(9), BOB)
    for floor in (0, 5):
        assert epoch(step(fresh(min_epoch=floor), to_bob, stolen)[0]) == 9
        state, _, _ = step(fresh(min_epoch=floor), to_bob, to_carol, stolen)
        assert (epoch(state), state.min_epoch) == (0 if floor else 3, floor)
        state, _, _ = step(fresh(min_epoch=floor), to_bob, to_carol, sign(document(6), CAROL))
        assert epoch(step(state, to_bob, stolen)[0]) == 6
    assert epoch(step(fresh(CAROL), to_bob, stolen)[0]) == 0


def test_a_party_that_remembers_its_policy_remembers_who_signs_after_it() -> None:
    """Also if that policy has ended: the key that it took the right from does not count again."""
    ends = "2026-02-01T00:00:00Z"
    turn = sign(document(4, signers=named(BOB), not_after=ends), ALICE, BOB)
    five = sign(document(5, not_after=ends), BOB)
    before = datetime(2026, 1, 15, tzinfo=UTC)
    for offered, number in (((turn,), 4), ((turn, five), 5)):
        running, _, _ = step(fresh(), *offered, now=before)
        again = resumed(fresh(), split(running.handover), seen=running.seen)
        assert (again.trusted, again.trusted_since, again.line) == (trusting(BOB), 4, (turn,))
        for state in (running, again):
            assert epoch(state) == number
            assert step(state, sign(document(9), ALICE))[2] == "policy_unsigned"
            later, _, reason = step(state, sign(document(9), BOB))
            assert (epoch(later), reason) == (9, "")
            assert step(fresh(), *split(later.handover))[0].policy == later.policy
            # The remembered policy itself is in force while it may be.
            assert epoch(step(state, *split(running.handover), now=before)[0]) == number
        held, outcome, reason = step(again, *split(running.handover), now=before)
        assert outcome.taken is held.policy is not None
        assert (held.policy.epoch, held.trusted, reason) == (running.seen, running.trusted, "")
    # What these keys did not sign, or what is newer than what was seen, leads nowhere.
    assert resumed(fresh(CAROL), [turn, five], seen=None) == fresh(CAROL)
    assert resumed(fresh(), [SignedPolicy(b"{}")], seen=None) == fresh()
    assert resumed(fresh(), [turn], seen=None) == fresh()


def test_nothing_lower_than_the_link_by_the_new_signers() -> None:
    turn = sign(document(4, signers=named(BOB), not_after="2026-02-01T00:00:00Z"), ALICE, BOB)
    state, _, _ = step(fresh(), turn, sign(document(3), BOB))
    assert epoch(state) == 0


@pytest.mark.parametrize("data", [b"{", b'{"a": 1} {', b"\xff", b"{} " * 100, b"[" * 100_000])
def test_files_that_hold_none(data: bytes) -> None:
    try:
        parts = split(data)
    except PolicyError:
        return
    assert step(fresh(), *parts)[0] == fresh()


def test_a_large_handover_is_compressed_and_bounded() -> None:
    rules = [
        {"from": f"spiffe://example.org/a/{number}", "to": f"spiffe://example.org/b/{number}"}
        for number in range(1500)
    ]
    signed = sign(document(3, allow=rules), ALICE)
    state, _, _ = step(fresh(), signed)
    handed = state.handover
    assert len(handed) < len(signed) / 3
    assert split(handed) == [signed]
    assert state.handover is handed  # thousands of agents may be behind: it is made once
    for bad in (handed[:-20], handed + b"x", handed[:40], gzip.compress(b"{" * 30_000_000)):
        with refused("policy_malformed"):
            split(bad)


def test_an_empty_offer() -> None:
    assert step(fresh())[2] == "policy_absent"
    assert split(b" \n") == []


def test_a_policy_that_names_the_signers_again_ends_the_right_of_others() -> None:
    # Epoch 2 gave the right to Bob, and epoch 3, which both signed, gave it back to Alice. A party
    # that started with Alice's key and never saw epoch 2 takes epoch 3. From then on only Alice's
    # signature counts: Bob's key, lost since, leads no further.
    to_bob = sign(document(2, signers=named(BOB)), ALICE, BOB)
    back = sign(document(3, signers=named(ALICE)), ALICE, BOB)
    stolen = sign(document(4, description="everything"), BOB)
    state, _, _ = step(fresh(), back)
    assert epoch(state) == 3
    same, outcome, _ = step(state, to_bob, stolen)
    assert (same, outcome.taken) == (state, None)
    state, _, _ = step(state, sign(document(4), ALICE))
    assert epoch(state) == 4
