"""Meters the store: pushes, ACKs, streams, and the expiry of the SVIDs that are served.

Owns :class:`MeteredStore`, a store that times deliveries, and :class:`StoreCollector`, which
reads expiry and counts from it when scraped. Invariants: a delivery counts as a push only if the
subscription got an older version of the same resource before (a first answer is not a push); at
most :data:`MAX_IDENTITIES` samples of a family name an identity: those that expire first, and those
of whose life the least is left.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from prometheus_client.core import GaugeMetricFamily

from sds.clock import stopwatch
from sds.identity import Identity
from sds.secrets.store import SecretStore

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from datetime import datetime

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from sds.clock import Clock
    from sds.operations.metrics.families import AgentFamilies
    from sds.secrets.identity_status import IdentityStatus
    from sds.secrets.store import Change, ResourceKey, StoredSvid, SubscriptionId, Svid, Version

MAX_IDENTITIES: Final = 200


class MeteredStore(SecretStore):
    """A store that times deliveries; ``timer`` gives monotonic seconds."""

    def __init__(self, families: AgentFamilies, *, timer: Callable[[], float] = stopwatch) -> None:
        super().__init__()
        self._families = families
        self._timer = timer
        self._changed: dict[ResourceKey, tuple[Version, float]] = {}
        self._written: dict[SubscriptionId, dict[ResourceKey, tuple[Version, float]]] = {}
        self.listen(self._note_change)

    def put_svid(self, svid: Svid) -> Version:
        self._families.renewals.inc()
        return super().put_svid(svid)

    def withdraw_svid(self, identity: Identity) -> None:
        if self.svid(identity) is not None:
            self._families.expirations.inc()
        super().withdraw_svid(identity)

    def open_subscription(self) -> SubscriptionId:
        subscription = super().open_subscription()
        self._written[subscription] = {}
        return subscription

    def close_subscription(self, subscription: SubscriptionId) -> None:
        super().close_subscription(subscription)
        self._written.pop(subscription, None)

    def sent(self, subscription: SubscriptionId, key: ResourceKey, version: Version) -> None:
        super().sent(subscription, key, version)
        now = self._timer()
        written = self._written[subscription]
        before = written.get(key)
        changed = self._changed.get(key)
        self._families.responses.inc()
        if before is not None and before[0] != version and changed and changed[0] == version:
            self._families.push_latency.observe(now - changed[1])
        written[key] = (version, now)

    def acked(self, subscription: SubscriptionId, key: ResourceKey, version: Version) -> None:
        super().acked(subscription, key, version)
        written = self._written[subscription].get(key)
        if written is not None and written[0] == version:
            self._families.acks.inc()
            self._families.ack_latency.observe(self._timer() - written[1])

    def keep_only(
        self, subscription: SubscriptionId, parts: Collection[tuple[ResourceKey, Version]]
    ) -> None:
        super().keep_only(subscription, parts)
        written = self._written[subscription]
        if len(written) > len(parts):
            for key in written.keys() - {key for key, _ in parts}:
                del written[key]

    def _note_change(self, change: Change) -> None:
        """Remember when each resource changed; the store calls it before any other listener."""
        now = self._timer()
        for key in change.keys:
            current = self.svid(key) if isinstance(key, Identity) else self.bundle(key)
            if current is None:
                self._changed.pop(key, None)
            else:
                self._changed[key] = (current.version, now)


class StoreCollector:
    """Reads the store and the wanted identities when scraped.

    Attributes:
        wanted: every identity that the agent keeps; the owner of rotation sets it.
    """

    def __init__(self, store: MeteredStore, clock: Clock, registry: CollectorRegistry) -> None:
        self._store = store
        self._clock = clock
        self.wanted: Callable[[], Sequence[IdentityStatus]] = tuple
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """Return the samples of this moment (a custom collector of prometheus-client)."""
        served = list(self._store.svids().values())
        kept = self.wanted()
        wanted = [one for one in kept if one.wanted]
        yield _gauge("sds_svids", "SVIDs that are served.", len(served))
        yield _gauge(
            "sds_identities_wanted",
            "Identities that somebody may have now; not those that are minted ahead, or kept for "
            "callers that may come back.",
            len(wanted),
        )
        yield _gauge(
            "sds_identities_served",
            "Identities that are wanted and have a valid SVID.",
            sum(one.condition == "valid" for one in wanted),
        )
        yield _gauge(
            "sds_identities_failing",
            "Identities that are wanted and whose last attempt to get an SVID failed.",
            sum(bool(one.reason) for one in wanted),
        )
        yield _gauge("sds_bundles", "Trust bundles that are served.", len(self._store.bundles()))
        yield _gauge(
            "sds_subscriptions",
            "Names that streams subscribe to, over all streams.",
            self._store.subscription_count(),
        )
        # Nothing renews the others, and nobody waits for them: they are not late.
        idle = {one.identity for one in kept if not one.wanted}
        served = [one for one in served if one.svid.identity not in idle]
        yield from self._expiry(served, [one for one in wanted if _is_expired(one)])

    def _expiry(self, served: list[StoredSvid], expired: list[IdentityStatus]) -> Iterable[Metric]:
        """Return when SVIDs expire; an expired SVID that is still wanted has a part of 0 left."""
        now = self._clock.now().wall
        first = heapq.nsmallest(MAX_IDENTITIES, served, key=lambda stored: stored.svid.not_after)
        least = GaugeMetricFamily(
            "sds_svid_not_after_min_timestamp_seconds",
            "When the next wanted SVID expires; absent while none is served.",
        )
        if first:
            least.add_metric([], first[0].svid.not_after.timestamp())
        yield least
        expiry = GaugeMetricFamily(
            "sds_svid_not_after_timestamp_seconds",
            "When the SVID expires; of those that are wanted, the 200 that expire first.",
            labels=["spiffe_id"],
        )
        # Several identities may share one SPIFFE ID (other DNS names): the first of them counts.
        for spiffe_id, end in _firsts((one, one.svid.not_after.timestamp()) for one in first):
            expiry.add_metric([spiffe_id], end)
        yield expiry
        left = GaugeMetricFamily(
            "sds_svid_remaining_ratio",
            "Part of the SVID's life that is left, from its receipt: 1 is new, 0 expired. An SVID "
            "that expired stays at 0 while its identity is wanted. Of those that are wanted, the "
            "200 with the least left.",
            labels=["spiffe_id"],
        )
        # Lifetimes differ: an SVID of a day is late long before it is among the first to expire.
        parts = heapq.nsmallest(
            MAX_IDENTITIES, ((one, _part(one.svid, now)) for one in served), key=lambda one: one[1]
        )
        said = {str(one.identity.spiffe_id): 0.0 for one in expired[:MAX_IDENTITIES]}
        for spiffe_id, part in _firsts(parts):
            if len(said) < MAX_IDENTITIES:
                said.setdefault(spiffe_id, part)
        for spiffe_id, part in said.items():
            left.add_metric([spiffe_id], part)
        yield left

    def describe(self) -> Iterable[Metric]:
        """Return names without values, so that registering does not read the store."""
        return []


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _is_expired(one: IdentityStatus) -> bool:
    """Say whether an identity had an SVID and has none now."""
    return one.rotations > 0 and one.not_after is None


def _part(svid: Svid, now: datetime) -> float:
    """Return the part of its life that is left, from its receipt."""
    span = (svid.not_after - svid.received_at).total_seconds()
    left = (svid.not_after - now).total_seconds()
    return max(0.0, min(1.0, left / span)) if span > 0 else 0.0


def _firsts(values: Iterable[tuple[StoredSvid, float]]) -> Iterable[tuple[str, float]]:
    """Return each SPIFFE ID with the first value of it."""
    found: dict[str, float] = {}
    for stored, value in values:
        found.setdefault(str(stored.svid.identity.spiffe_id), value)
    return found.items()
