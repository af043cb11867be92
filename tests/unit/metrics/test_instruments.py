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

    def refreshed() -> float | None:
        return instruments.registry.get_sample_value(
            "sds_federation_refreshed_timestamp_seconds", {"trust_domain": domain}
        )

    assert refreshed() == 0
    instruments.forgotten(domain)
    assert refreshed() is None


def test_a_policy_that_ended_did_not_come_into_force(instruments: AgentInstruments) -> None:
    policy = SimpleNamespace(epoch=SimpleNamespace(number=7), not_after=NOW)
    instruments.taken(cast("Any", policy), now=NOW)
    instruments.ended()
    names = ("epoch", "loaded_timestamp_seconds", "not_after_timestamp_seconds")
    values = [instruments.registry.get_sample_value(f"sds_policy_{name}") for name in names]
    assert values == [0, 0, NOW.timestamp()]
