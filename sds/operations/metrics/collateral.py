"""How old the collateral is that evidence is judged by, and whether it can be read and fetched.

Owns :class:`CollateralCollector`, which asks at each scrape. Invariant: where nothing is
configured, the counters are 0 and the times are not exported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import CollectorRegistry

    from sds.attestation.standing import CollateralFile


class CollateralSource(Protocol):
    """What judges evidence by files."""

    def collateral(self) -> Sequence[CollateralFile]:
        """The files in force."""
        ...

    def collateral_failures(self) -> tuple[int, int]:
        """How often the files could not be used, and how often none could be fetched."""
        ...


class CollateralCollector(Collector):
    """``sds_collateral_…``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """``registry``: where it is registered."""
        self.source: CollateralSource | None = None
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        unusable, unfetched = (0, 0) if self.source is None else self.source.collateral_failures()
        failures = CounterMetricFamily(
            "sds_collateral_failures",
            "Attempts that failed: to read revocation lists and collateral ('read': what was read "
            "before stays in force), or to fetch them ('fetch': what is stored stays).",
            labels=["what"],
        )
        failures.add_metric(["read"], unusable)
        failures.add_metric(["fetch"], unfetched)
        yield failures
        issued = GaugeMetricFamily(
            "sds_collateral_issued_timestamp_seconds",
            "When each revocation list and document of collateral in force was issued.",
            labels=["file"],
        )
        until = GaugeMetricFamily(
            "sds_collateral_next_update_timestamp_seconds",
            "Until when it counts; afterwards evidence that needs it is refused.",
            labels=["file"],
        )
        for one in () if self.source is None else self.source.collateral():
            issued.add_metric([one.name], one.issued.timestamp())
            until.add_metric([one.name], one.until.timestamp())
        yield issued
        yield until
