"""The metrics of foreign trust domains, as the alert SdsFederationStale reads them."""

from __future__ import annotations

from sds.clock import SystemClock
from sds.identity import parse_trust_domain
from sds.operations.instruments import AgentInstruments


def test_a_trust_domain_without_a_source_is_not_stale() -> None:
    instruments = AgentInstruments(clock=SystemClock())
    domain = parse_trust_domain("other.org")
    instruments.watch_federation([domain])

    def refreshed() -> float | None:
        return instruments.registry.get_sample_value(
            "sds_federation_refreshed_timestamp_seconds", {"trust_domain": domain}
        )

    assert refreshed() == 0
    instruments.forgotten(domain)
    assert refreshed() is None
