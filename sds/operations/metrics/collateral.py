"""Exports the age of collateral, and whether it can be read and fetched.

Owns :class:`CollateralCollector`, which reads its sources at each scrape. Invariant: if nothing is
configured, the counts are 0 and the times are not exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from prometheus_client import CollectorRegistry

    from sds.attestation.build import Verification
    from sds.attestation.collateral.age import CollateralFile


class CollateralCollector(Collector):
    """Exports the families ``sds_collateral_…``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.sources: Sequence[Verification] = ()
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        failing = GaugeMetricFamily(
            "sds_collateral_failing",
            "Failures in a row, 0 after a success: to read revocation lists and collateral "
            "('read': what was read before stays in force, and the process would not start again), "
            "or to fetch them ('fetch': what is stored stays).",
            labels=["what"],
        )
        failures = CounterMetricFamily(
            "sds_collateral_failures",
            "Attempts that failed since the start, as in sds_collateral_failing.",
            labels=["what"],
        )
        counts = [one.collateral_failures() for one in self.sources]
        in_a_row = [one.collateral_failing() for one in self.sources]
        for position, what in enumerate(("read", "fetch")):
            failures.add_metric([what], sum(each[position] for each in counts))
            failing.add_metric([what], max((each[position] for each in in_a_row), default=0))
        yield failing
        yield failures
        issued = GaugeMetricFamily(
            "sds_collateral_issued_timestamp_seconds",
            "When each revocation list and document of collateral in force was issued.",
            labels=["file"],
        )
        until = GaugeMetricFamily(
            "sds_collateral_next_update_timestamp_seconds",
            "When each of them expires; afterwards evidence that needs it is refused. For an "
            "issuer's revocation lists: the newest one.",
            labels=["file"],
        )
        for one in first_to_end(one for each in self.sources for one in each.collateral()):
            issued.add_metric([one.name], one.issued.timestamp())
            until.add_metric([one.name], one.until.timestamp())
        yield issued
        yield until


def first_to_end(files: Iterable[CollateralFile]) -> Iterable[CollateralFile]:
    """Return one file for each name: of two folders, the one that expires first."""
    found: dict[str, CollateralFile] = {}
    for one in files:
        before = found.get(one.name)
        if before is None or one.until < before.until:
            found[one.name] = one
    return found.values()
