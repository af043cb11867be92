"""Metrics of policy and federation say what is true now, as alerts and help texts expect."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sds.agent.state_reader import LivingParts, UnservedIdentities
from sds.clock import SystemClock
from sds.errors import AuthorityUnavailableError
from sds.identity import Identity, SpiffeId, TrustDomain, parse_trust_domain
from sds.operations.instruments import AgentInstruments
from sds.secrets.rotation import Rotation
from sds.serving.service import SecretService
from tests.support.clock import FakeClock
from tests.support.fake_authority import FakeAuthority, FakeAuthorityWithRoots

WEB = Identity(spiffe_id=SpiffeId.parse("spiffe://example.org/web"), lifetime=dt.timedelta(hours=1))
NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def instruments() -> AgentInstruments:
    return AgentInstruments(clock=SystemClock())


def test_a_trust_domain_without_a_source_is_not_stale(instruments: AgentInstruments) -> None:
    domain = parse_trust_domain("other.org")
    instruments.watch_federation([domain])

    def said() -> dict[str, float]:
        return {
            family.name.removesuffix("_timestamp_seconds"): sum(one.value for one in family.samples)
            for family in instruments.registry.collect()
            for one in family.samples[:1]
            if one.labels.get("trust_domain") == "other.org"
        }

    names = {"sds_federation_refreshed", "sds_federation_due", "sds_federation_failures"}
    assert said() == dict.fromkeys(names, 0)
    later = NOW + dt.timedelta(days=1)
    instruments.refreshed(domain, at=NOW, due=later)
    assert said()["sds_federation_due"] == later.timestamp()
    instruments.forgotten(domain)
    assert said() == {}


def test_a_policy_that_ended_did_not_come_into_force(instruments: AgentInstruments) -> None:
    policy = SimpleNamespace(epoch=SimpleNamespace(number=7), not_after=NOW)
    instruments.taken(cast("Any", policy), now=NOW)
    instruments.ended()
    names = ("epoch", "loaded_timestamp_seconds", "not_after_timestamp_seconds")
    values = [instruments.registry.get_sample_value(f"sds_policy_{name}") for name in names]
    assert values == [0, 0, NOW.timestamp()]


@pytest.mark.parametrize("gives_news", [True, False])
async def test_an_authority_that_nobody_asks_any_more_is_not_gone_for_ever(
    gives_news: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    """The pods that wanted a certificate are deleted, and then the authority comes back."""
    clock, instruments = FakeClock(), AgentInstruments(clock=FakeClock())
    authority = FakeAuthorityWithRoots(clock) if gives_news else FakeAuthority(clock)
    rotation = Rotation(
        trust_domain=TrustDomain("example.org"),
        store=instruments.store,
        authority=instruments.authority(cast("Any", authority)),
        clock=clock,
        observer=instruments,
    )
    service = SecretService(instruments.store)
    parts = LivingParts(
        trust_domain=TrustDomain("example.org"),
        started=clock.now(),
        clock=clock,
        store=instruments.store,
        rotation=rotation,
        service=service,
        unserved=UnservedIdentities((), instruments.store),
        authority=str,
        gives_news=gives_news,
    )
    instruments.watch_agent(parts)

    def up() -> float | None:
        return instruments.registry.get_sample_value("sds_authority_up")

    running = asyncio.create_task(rotation.run())
    try:
        authority.failure = AuthorityUnavailableError("the authority is down")
        rotation.ensure(WEB)
        await clock.until(lambda: up() == 0)
        rotation.release(WEB)
        await clock.settle()
        left = up()
        assert left is not None
        assert math.isnan(left)
        rotation.ensure(WEB)
        assert up() == 0
        authority.failure = None
        await clock.until(lambda: up() == 1)
        rotation.release(WEB)
        assert up() == 1
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
