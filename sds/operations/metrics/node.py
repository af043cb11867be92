"""Counts the connections that the node-wide socket refused, by reason.

Owns :class:`NodeCollector`, which reads the counts at each scrape. Invariants: every reason that is
known is exported from the start, at 0; no label names a caller, because callers choose how many
there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import CollectorRegistry

REASONS: Final = (
    "connection_limit",
    "connection_rate",
    "descriptors",
    "other_pod",
    "peer_credentials",
    "peer_gone",
    "process_unreadable",
    "unexpected",
)


class NodeConnections(Protocol):
    """Accepts on the node-wide socket, and counts."""

    @property
    def accepted(self) -> int:
        """Return how many connections were accepted."""
        ...

    @property
    def refused(self) -> Mapping[str, int]:
        """Return how many connections were refused, by reason."""
        ...


class NodeCollector(Collector):
    """Exports the families ``sds_node_connections_…``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.source: NodeConnections | None = None
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        source = self.source
        yield CounterMetricFamily(
            "sds_node_connections_accepted",
            "Connections to the node-wide socket, and to the sockets of CSI volumes, that were "
            "accepted.",
            value=0 if source is None else source.accepted,
        )
        refused = CounterMetricFamily(
            "sds_node_connections_refused",
            "Connections to these sockets that were refused before anything was served, by reason; "
            "'connection_limit': or that ended because an owner with far fewer had no room; "
            "'descriptors': they wait, because the process has no file descriptors left.",
            labels=["reason"],
        )
        counted = {} if source is None else source.refused
        for reason in sorted({*REASONS, *counted}):
            refused.add_metric([reason], counted.get(reason, 0))
        yield refused
