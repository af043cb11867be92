"""The demo's right that comes and goes: which answers are expected when."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from sds.clock import SystemClock
from sds.demo.withdrawal import DemoPolicy, Mesh, Withdrawal
from sds.identity import SpiffeId, parse_trust_domain
from sds.policy.holder import PolicyHolder
from sds.policy.requests import Request
from sds.policy.settings import PolicySettings

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {name: f"spiffe://demo.test/{name}" for name in ("client", "server")}
CLIENT, SERVER = (SpiffeId.parse(NAMES[name]) for name in ("client", "server"))
MESH = Mesh(trust_domain="demo.test", measurement="ab" * 48, spiffe_ids=NAMES, lifetime_seconds=10)


def test_each_epoch_is_one_that_its_readers_take(tmp_path: Path) -> None:
    clock = SystemClock()
    policy = DemoPolicy(tmp_path / "policy.json", MESH, clock=clock)
    settings = PolicySettings.model_validate(policy.section())
    holder = PolicyHolder(settings.start(parse_trust_domain("demo.test")), clock=clock)
    for epoch, allowed in ((1, True), (2, False), (3, True)):
        if epoch > 1:
            assert policy.publish(allowed=allowed) == epoch
        outcome = holder.take(settings.place.read_bytes(), origin="test")
        assert outcome.taken is not None, outcome.refusal
        decisions = holder.in_force().decisions
        assert decisions.may_request(CLIENT, SERVER, Request()) is allowed
        assert not decisions.may_request(CLIENT, SERVER, Request(path="/other"))
        assert not decisions.may_request(SERVER, CLIENT, Request())
        assert holder.in_force().not_after - clock.now().wall > timedelta(hours=1)


def test_only_the_answers_that_a_published_policy_explains_are_expected(tmp_path: Path) -> None:
    clock = SystemClock()
    policy = DemoPolicy(tmp_path / "policy.json", MESH, clock=clock)
    right = Withdrawal(policy, clock=clock)
    assert right.saw(allowed=True) is None
    with pytest.raises(ValueError, match="denied against the policy of epoch 1"):
        right.saw(allowed=False)
    right.toggle()
    right.toggle()  # the change before is still on its way
    assert policy.epoch == 2
    assert right.saw(allowed=True) is None
    event = right.saw(allowed=False)
    assert event is not None
    assert (event.allowed, event.epoch) == (False, 2)
    assert 0 <= event.seen_after_ms < 60_000
    assert right.saw(allowed=False) is None
    with pytest.raises(ValueError, match="let through against the policy of epoch 2"):
        right.saw(allowed=True)
    right.toggle()
    back = right.saw(allowed=True)
    assert back is not None
    assert (back.allowed, back.epoch, right.changes) == (True, 3, 2)
