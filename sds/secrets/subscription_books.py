"""The books of subscriptions: what each was sent, what it ACKed, and what it may still use.

Owns these books, and the sums that rotation asks for. Invariants: an answer of a client costs the
same however many subscriptions there are, and so do rotation's questions while it waits for
answers; at most :data:`MOST_VERSIONS` versions of a resource are remembered for a subscription,
whether its client answers or not; what the last answer does not contain is forgotten once the
client has taken that answer.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.identity import Identity

if TYPE_CHECKING:
    from collections.abc import Collection

    from sds.secrets.store import ResourceKey, SubscriptionId, Version

MOST_VERSIONS: Final = 5
"""How many versions are remembered. A client that never ACKs gets every new one, for as long as it
stays; an older key is wiped anyway (:mod:`sds.secrets.retirement`)."""
_NEVER: Final = 0
"""The ordinal of what was never ACKed."""


@dataclass(slots=True, kw_only=True)
class _Delivery:
    """The versions of one resource that one subscription was sent and may still use.

    ``keys`` maps each version that the subscriber may still use to the key id in it (the empty
    string for a bundle): the last one ACKed and what was sent after it.
    """

    acked: Version | None = None
    keys: dict[Version, str] = field(default_factory=dict)


class SubscriptionBooks:
    """What every live subscription was sent and ACKed."""

    def __init__(self) -> None:
        self._deliveries: dict[SubscriptionId, dict[ResourceKey, _Delivery]] = {}
        self._held: Counter[str] = Counter()
        """For each key id: how many entries of subscriptions have it."""
        self._acks: dict[ResourceKey, Counter[int]] = {}
        """For each bundle: how many subscriptions ACKed which version last, by its ordinal."""

    def __len__(self) -> int:
        """Return how many subscriptions there are."""
        return len(self._deliveries)

    # --- what happens ---------------------------------------------------------------------------

    def open(self, subscription: SubscriptionId) -> None:
        """Begin the books of a subscription."""
        self._deliveries[subscription] = {}

    def close(self, subscription: SubscriptionId) -> None:
        """End the books of a subscription; what it was sent no longer counts."""
        for key, delivery in self._deliveries.pop(subscription, {}).items():
            self._let_go(key, delivery)

    def sent(
        self, subscription: SubscriptionId, key: ResourceKey, version: Version, key_id: str
    ) -> None:
        """Enter that this version was sent; ``key_id`` names the key in it, if it has one."""
        deliveries = self._deliveries[subscription]
        delivery = deliveries.get(key)
        if delivery is None:
            delivery = deliveries[key] = _Delivery()
            if not isinstance(key, Identity):
                self._acks.setdefault(key, Counter())[_NEVER] += 1
        keys = delivery.keys
        if version in keys:
            self._release(keys[version])
        keys[version] = key_id
        if key_id:
            self._held[key_id] += 1
        if len(keys) > MOST_VERSIONS:
            self._release(keys.pop(next(one for one in keys if one != delivery.acked)))

    def acked(self, subscription: SubscriptionId, key: ResourceKey, version: Version) -> bool:
        """Enter an ACK: the subscriber has let go of every earlier version; say if that is news."""
        delivery = self._deliveries[subscription].get(key)
        if delivery is None or version not in delivery.keys:
            return False
        before, delivery.acked = delivery.acked, version
        if len(delivery.keys) > 1:
            oldest = _ordinal(version)
            kept = {}
            for one, key_id in delivery.keys.items():
                if one == version or _ordinal(one) >= oldest:
                    kept[one] = key_id
                else:
                    self._release(key_id)
            delivery.keys = kept
        if before != version:
            self._recount(key, before, version)
        return True

    def keep_only(
        self, subscription: SubscriptionId, parts: Collection[tuple[ResourceKey, Version]]
    ) -> bool:
        """Enter that the subscriber uses nothing but these; say if that is news.

        Identities change while a stream lasts: each Service that begins to select a pod makes a new
        one.
        """
        deliveries = self._deliveries[subscription]
        if len(deliveries) <= len(parts):
            return False
        gone = deliveries.keys() - {key for key, _ in parts}
        for key in gone:
            self._let_go(key, deliveries.pop(key))
        return bool(gone)

    def nacked(self, subscription: SubscriptionId, key: ResourceKey, version: Version) -> None:
        """Enter a NACK: the subscriber goes on using what it ACKed before."""
        delivery = self._deliveries[subscription].get(key)
        if delivery is not None:
            self._release(delivery.keys.pop(version, ""))

    # --- what rotation asks ---------------------------------------------------------------------

    def lags(self, key: ResourceKey, version: Version) -> bool:
        """Say whether a subscription of this bundle ACKed neither ``version`` nor a later one."""
        wanted = _ordinal(version)
        return any(ordinal < wanted for ordinal in self._acks.get(key, ()))

    def stragglers(self, key: ResourceKey, version: Version) -> frozenset[SubscriptionId]:
        """Return those subscriptions; this looks at all, so ask :meth:`lags` where that will do."""
        return frozenset(
            subscription
            for subscription, deliveries in self._deliveries.items()
            if (delivery := deliveries.get(key)) is not None
            and _ordinal(delivery.acked) < _ordinal(version)
        )

    def held_keys(self) -> frozenset[str]:
        """Return the ids of all keys that any live subscription may still use."""
        return frozenset(self._held)

    # --- inside ---------------------------------------------------------------------------------

    def _let_go(self, key: ResourceKey, delivery: _Delivery) -> None:
        for key_id in delivery.keys.values():
            self._release(key_id)
        self._recount(key, delivery.acked, None)

    def _release(self, key_id: str) -> None:
        if key_id:
            self._held[key_id] -= 1
            if not self._held[key_id]:
                del self._held[key_id]

    def _recount(self, key: ResourceKey, before: Version | None, after: Version | None) -> None:
        """Count a subscription of a bundle under another version; without ``after`` no more."""
        counts = self._acks.get(key)
        if counts is None:  # an SVID
            return
        ordinal = _ordinal(before)
        counts[ordinal] -= 1
        if not counts[ordinal]:
            del counts[ordinal]
        if after is not None:
            counts[_ordinal(after)] += 1
        elif not counts:
            del self._acks[key]


@functools.lru_cache(maxsize=64)
def _ordinal(version: Version | None) -> int:
    """Return the number of a version; each of a rotation's ACKs asks for the same two."""
    return _NEVER if version is None else int(version.rpartition("-")[2])
