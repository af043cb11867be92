"""Exports what the owners of connections use, and how often they exceeded their budgets.

Owns :class:`OwnersCollector`, which reads the budgets at each scrape. Invariant: no label names an
owner, because callers choose how many there are; ``sds status`` names them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from sds.transport import usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry

    from sds.transport.budget import Budgets


class OwnersCollector(Collector):
    """Exports the families ``sds_owner_…``, with 0 for each label from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.budgets: Budgets | None = None
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        budgets = self.budgets
        exceeded = CounterMetricFamily(
            "sds_owner_budget_exceeded",
            "How often an owner of connections (a pod, or a user outside pods) exceeded a limit of "
            "its budget.",
            labels=["limit"],
        )
        counted = {} if budgets is None else dict(usage.times_exceeded(budgets))
        for limit in usage.LIMITS:
            exceeded.add_metric([limit.replace(" ", "_")], counted.get(limit, 0))
        yield exceeded
        nothing = usage.Usage()
        of = {
            "recognised": nothing if budgets is None else usage.recognised(budgets),
            "strangers": nothing if budgets is None else usage.strangers(budgets),
        }
        for name, words in (
            ("connections", "Open connections of owners that a rule recognised, or of strangers."),
            ("streams", "Open streams and calls of such owners."),
            ("held_bytes", "Memory that counts against the budgets of such owners."),
        ):
            family = GaugeMetricFamily(f"sds_owner_{name}", words, labels=["owners"])
            for who, used in of.items():
                family.add_metric([who], getattr(used, name))
            yield family
        owners = () if budgets is None else budgets.owners.values()
        yield GaugeMetricFamily(
            "sds_owner_largest_held_bytes",
            "Memory of the owner that has the most.",
            value=max((owner.held for owner in owners), default=0),
        )
