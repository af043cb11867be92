"""An old policy, restored: refused while anybody remembers, else accepted until its end."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sds.ca.signed_policy import SignedIssuancePolicy
from sds.policy.holder import PolicyHolder
from sds.policy.succession import PolicySuccession
from tests.support.clock import FakeClock
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting
from tests.support.refusals import refused

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
