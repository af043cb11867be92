"""Counts the certificates that were minted before a caller asked, by their outcome.

Owns :class:`AheadCollector`, which reads the counts at each scrape. Invariant: every outcome is
exported from the start, at 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

    from sds.workload.minting_ahead import MintingAhead

_OUTCOMES = ("used", "unused", "no_room")


class AheadCollector(Collector):
    """Exports ``sds_minted_ahead_total`` and ``sds_minted_ahead_waiting``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.source: MintingAhead | None = None
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        family = CounterMetricFamily(
            "sds_minted_ahead",
            "Identities minted before a caller asked, by outcome, once they are released: 'used', "
            "'unused' (nobody came); and 'no_room': pods for which too many waited to mint all.",
            labels=["outcome"],
        )
        outcomes = {} if self.source is None else self.source.outcomes
        for outcome in _OUTCOMES:
            family.add_metric([outcome], outcomes.get(outcome, 0))
        yield family
        yield GaugeMetricFamily(
            "sds_minted_ahead_waiting",
            "Identities that were minted ahead and are kept now.",
            value=0 if self.source is None else self.source.waiting,
        )
