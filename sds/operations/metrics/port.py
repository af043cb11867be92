"""Counts the connections of the authority's port, and the TLS handshakes on them.

Owns :class:`PortCollector`, which reads the counts at each scrape. Invariants: every result that is
known is exported from the start, at 0; no label names a caller, because callers choose how many
there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import CollectorRegistry

RESULTS: Final = ("done", "failed", "left")


class Port(Protocol):
    """Accepts on the authority's port, and counts."""

    @property
    def proven(self) -> int:
        """Return on how many open connections evidence was accepted."""
        ...

    @property
    def strangers(self) -> int:
        """Return on how many it was not."""
        ...

    @property
    def ended(self) -> int:
        """Return how many connections gave way to others."""
        ...

    def handshakes(self) -> Mapping[str, int]:
        """Return how many TLS handshakes had each of :data:`RESULTS`."""
        ...


class PortCollector(Collector):
    """Exports the families ``sds_ca_connections…`` and ``sds_ca_tls_handshakes_total``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.source: Port | None = None
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        source = self.source
        connections = GaugeMetricFamily(
            "sds_ca_connections",
            "Open connections of agents whose evidence was accepted on them ('proven'), and of all "
            "others ('strangers').",
            labels=["callers"],
        )
        connections.add_metric(["proven"], 0 if source is None else source.proven)
        connections.add_metric(["strangers"], 0 if source is None else source.strangers)
        yield connections
        yield CounterMetricFamily(
            "sds_ca_connections_ended",
            "Connections that were closed because others needed the room: those of strangers, and "
            "those of machines with more than their share.",
            value=0 if source is None else source.ended,
        )
        handshakes = CounterMetricFamily(
            "sds_ca_tls_handshakes",
            "TLS handshakes by result: 'done'; 'failed': the caller broke TLS, or offered nothing "
            "that the authority accepts; 'left': it went away before, as an agent does that first "
            "fetches the certificate (attested TLS, once for each new stream).",
            labels=["result"],
        )
        counted = {} if source is None else source.handshakes()
        for result in RESULTS:
            handshakes.add_metric([result], counted.get(result, 0))
        yield handshakes
