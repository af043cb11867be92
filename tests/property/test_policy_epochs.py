"""Honest and rolled-back parties: no epoch ever goes down where one honest peer knows it.

Every party is the real state machine (``sds.policy.succession``), every exchange the real
comparison, every policy really signed. The adversary owns the disks: it may restart any party with
any set of policies that was ever published, forge what it likes with keys of its own, and hand
anything to anyone. It cannot stop two parties for ever from speaking with each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sds.errors import PolicyNotInForceError
from sds.policy.peer_comparison import NO_POLICY_DIGEST, Standing, standing
from sds.policy.succession import PolicySuccession, offer, split
from sds.policy.trust import Epoch
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting

if TYPE_CHECKING:
    from sds.policy.envelope import SignedPolicy

OLD, NEW, MALLORY = (Signatory(name) for name in ("old", "new", "mallory"))
START = datetime(2026, 1, 1, tzinfo=UTC)
LIFE = timedelta(hours=10)
TURN = 4
"""The epoch that hands signing over from OLD to NEW."""
PARTIES = 4
EPOCHS = 8


@cache
def published(epoch: int) -> SignedPolicy:
    """The one policy of this epoch: valid for LIFE from hour ``epoch`` on."""
    begins = START + timedelta(hours=epoch)
    fields = document(epoch, not_before=begins.isoformat(), not_after=(begins + LIFE).isoformat())
    if epoch < TURN:
        return sign(fields, OLD)
    if epoch == TURN:
        keys = [{"name": "new", "public_key": NEW.public.pem}]
        return sign({**fields, "signers": {"threshold": 1, "keys": keys}}, OLD, NEW)
    return sign(fields, NEW)


@cache
def forged(epoch: int) -> SignedPolicy:
    return sign(document(epoch, not_after="2030-01-01T00:00:00Z"), MALLORY)


def fresh() -> PolicySuccession:
    return PolicySuccession(trust_domain=DOMAIN, trusted=trusting(OLD))


@dataclass
class Party:
    """One agent or authority, and the highest epoch of this life."""

    state: PolicySuccession = field(default_factory=fresh)
    highest: int = 0

    @property
    def epoch(self) -> Epoch:
        return self.state.seen or Epoch(number=0, digest=NO_POLICY_DIGEST)

    def take(self, signed: list[SignedPolicy], now: datetime) -> None:
        self.state, _ = offer(self.state, signed, now=now)


class Epochs(RuleBasedStateMachine):
    """See the module."""

    parties: list[Party]

    @initialize()
    def begin(self) -> None:
        self.parties = [Party() for _ in range(PARTIES)]
        self.now = START + timedelta(hours=1)
        self.newest = 1
        for party in self.parties:
            party.take([published(1)], self.now)

    @rule()
    def author_publishes(self) -> None:
        self.newest = min(self.newest + 1, EPOCHS)
        self.now = max(self.now, START + timedelta(hours=self.newest))

    @rule(minutes=st.integers(1, 90))
    def time_passes(self, minutes: int) -> None:
        self.now += timedelta(minutes=minutes)

    @rule(who=st.integers(0, PARTIES - 1), epochs=st.sets(st.integers(1, EPOCHS)))
    def disk_offers(self, who: int, epochs: set[int]) -> None:
        """Whatever was published, in any choice: the newest, old ones, gaps."""
        offered = [published(epoch) for epoch in sorted(epochs) if epoch <= self.newest]
        self.parties[who].take([*offered, forged(99)], self.now)

    @rule(who=st.integers(0, PARTIES - 1), epochs=st.sets(st.integers(1, EPOCHS)))
    def restarts_with_what_the_adversary_left(self, who: int, epochs: set[int]) -> None:
        self.parties[who] = Party()
        self.disk_offers(who, epochs)

    @rule(agent=st.integers(0, PARTIES - 1), authority=st.integers(0, PARTIES - 1))
    def they_speak(self, agent: int, authority: int) -> None:
        one, two = self.parties[agent], self.parties[authority]
        before = max(one.epoch.number, two.epoch.number)
        match standing(one.epoch, two.epoch):
            case Standing.AHEAD:
                two.take(split(one.state.handover), self.now)
            case Standing.BEHIND:
                one.take(split(two.state.handover), self.now)
            case Standing.EQUAL | Standing.CONFLICT:
                pass
        self._issue(one, two, before)

    def _issue(self, agent: Party, authority: Party, before: int) -> None:
        """A certificate is issued only where both have the same epoch in force."""
        if standing(agent.epoch, authority.epoch) is not Standing.EQUAL:
            # It could not be handed over: only because its time is over.
            ahead = max((agent, authority), key=lambda party: party.epoch.number)
            assert ahead.state.policy is not None
            assert self.now >= ahead.state.policy.not_after
            return
        assert agent.epoch.number >= before
        try:
            policy = authority.state.in_force(self.now)
        except PolicyNotInForceError:
            return
        assert policy.epoch.number >= before

    @invariant()
    def no_epoch_goes_down(self) -> None:
        for party in self.parties:
            assert party.epoch.number >= party.highest
            party.highest = party.epoch.number
            assert party.epoch.number <= self.newest

    @invariant()
    def former_signers_never_come_back(self) -> None:
        for party in self.parties:
            if party.epoch.number >= TURN:
                assert party.state.trusted == trusting(NEW)


TestEpochs = Epochs.TestCase
TestEpochs.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
