"""Metrics of policy and federation say what is true now, as alerts and help texts expect."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sds.clock import SystemClock
from sds.identity import parse_trust_domain
from sds.operations.instruments import AgentInstruments

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
