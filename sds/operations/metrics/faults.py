"""Counts unexpected errors by what they ended.

Owns :class:`FaultsCollector`, which reads :mod:`sds.faults` at each scrape.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from sds import faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry


class FaultsCollector(Collector):
    """Exports ``sds_unexpected_errors_total``, with 0 for each place from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "sds_unexpected_errors",
            "Unexpected errors, by what each of them ended: one connection, one callback, "
            "…. The log has their tracebacks.",
            labels=["where"],
        )
        for where, count in faults.counts().items():
            family.add_metric([where], count)
        yield family
