from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from sds.operations.metrics.families import AgentFamilies
from sds.operations.metrics.serving import NACK_REASONS, CountingObserver, nack_reason
from sds.serving.observer import Event, Method


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("Failed to load certificate chain from <inline>", "certificate_chain"),
        ("Failed to load private key from <inline>, Cause: x", "private_key"),
        ("Failed to load trusted CA certificates from <inline>", "trusted_ca"),
        ("certificate and key does not match", "key_mismatch"),
        ("Unexpected SDS secret name default, expected x", "name"),
        ("Proto constraint validation failed", "malformed"),
        ("", "other"),
        ("anything else", "other"),
    ],
)
def test_words_become_reasons(words: str, reason: str) -> None:
    assert nack_reason(words) == reason
    assert reason in NACK_REASONS


def test_events_and_open_streams_are_counted() -> None:
    registry = CollectorRegistry()
    observer = CountingObserver(AgentFamilies(registry))
    for _ in range(3):
        observer.count(Event.STREAM_OPENED, Method.DELTA)
    observer.count(Event.STREAM_CLOSED, Method.DELTA)
    observer.count(Event.SENT, Method.STREAM, 5)
    observer.nacked("whatever")
    delta = {"method": "delta_secrets"}
    assert registry.get_sample_value("sds_streams", delta) == 2
    assert registry.get_sample_value("sds_streams", {"method": "stream_secrets"}) == 0
    sent = {"event": "resource_sent", "method": "stream_secrets"}
    assert registry.get_sample_value("sds_xds_events_total", sent) == 5
    assert registry.get_sample_value("sds_nacks_total", {"reason": "other"}) == 1
