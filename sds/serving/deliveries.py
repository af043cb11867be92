"""Reports what one stream was sent, ACKed and refused, to the store and to the observer.

Owns the store's subscriptions of a stream: one for each name that was sent. Invariant: they are all
closed with the stream, so that no key counts as in use by a client that has gone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from sds.serving.observer import ACK, SENT, Event
from sds.shrinking_dict import ShrinkingDict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sds.secrets.store import SecretStore, SubscriptionId
    from sds.serving.encode import Resource
    from sds.serving.observer import Method, ServingObserver
    from sds.serving.subscription import Answer, Outcome, Receipt

_LOGGER = logging.getLogger("sds.serving.streams")
_NAMES_LOGGED = 10
_FEW_PARTS: Final = 2
_PART_BYTES: Final = 512
"""Bytes of memory for each stored thing that was sent; a name may have a hundred bundles."""


class Deliveries:
    """The books of one stream.

    Args:
        store: is told of deliveries.
        observer: counts events.
        method: which remote call the stream is.
        labels: what log lines say about the client.
    """

    __slots__ = ("_labels", "_method", "_observer", "_store", "_subscriptions", "held")

    def __init__(
        self,
        store: SecretStore,
        observer: ServingObserver,
        method: Method,
        *,
        labels: Callable[[], dict[str, Any]],
    ) -> None:
        self._store = store
        self._observer = observer
        self._method = method
        self._labels = labels
        self._subscriptions: ShrinkingDict[str, tuple[SubscriptionId, int, str]] = ShrinkingDict()
        """For each name that was sent: its subscription, the bytes that count for it, and the last
        version."""
        self.held = 0
        """Bytes that the store uses for this stream, beyond the usual cost of each name."""

    def asked(self, outcome: Outcome) -> None:
        """Enter the outcome of one request."""
        count = self._observer.count
        if outcome.acked:
            count(ACK, self._method)
            for receipt in outcome.acked:
                self._acked(receipt)
        if outcome.error is not None:
            count(Event.NACK, self._method)
            self._observer.nacked(outcome.error)
            self._nacked(outcome.nacked, outcome.error)
        if outcome.stale:
            count(Event.STALE_NONCE, self._method)
        for name in outcome.dropped:
            self._close(name)

    def answered(self, answer: Answer[Resource]) -> None:
        """Enter an answer that is sent."""
        count = self._observer.count
        if answer.resources:
            count(SENT, self._method, len(answer.resources))
            for resource in answer.resources:
                self._sent(resource.receipt)
        if answer.held:
            count(Event.HELD, self._method, len(answer.held))
            for receipt in answer.held:
                self._sent(receipt)
                self._acked(receipt)
        if answer.removed:
            count(Event.REMOVED, self._method, len(answer.removed))
        if answer.absent:
            count(Event.ABSENT, self._method, len(answer.absent))
            _LOGGER.info(
                "asked for secrets that do not exist for this caller (yet)",
                extra={
                    "secrets": " ".join(answer.absent[:_NAMES_LOGGED]),
                    "more": max(0, len(answer.absent) - _NAMES_LOGGED),
                    **self._labels(),
                },
            )

    def close(self, names: Iterable[str]) -> None:
        """Drop the entries of these names, because the stream is over."""
        for name in names:
            self._close(name)

    def close_all(self) -> None:
        """Drop all entries, because the stream is over."""
        for subscription, _, _ in self._subscriptions.values():
            self._store.close_subscription(subscription)
        self._subscriptions.clear()
        self.held = 0

    def _sent(self, receipt: Receipt) -> None:
        if not receipt.parts:
            return
        known = self._subscriptions.get(receipt.name)
        if known is None:
            subscription = self._store.open_subscription()
        else:
            subscription, size, _ = known
            self.held -= size
        size = _PART_BYTES * max(0, len(receipt.parts) - _FEW_PARTS)
        self.held += size
        self._subscriptions[receipt.name] = (subscription, size, receipt.version)
        for key, version in receipt.parts:
            self._store.sent(subscription, key, version)

    def _acked(self, receipt: Receipt) -> None:
        known = self._subscriptions.get(receipt.name)
        if known is None:
            return
        subscription, _, last = known
        for key, version in receipt.parts:
            self._store.acked(subscription, key, version)
        if receipt.version == last:
            self._store.keep_only(subscription, receipt.parts)

    def _nacked(self, receipts: Iterable[Receipt], error: str) -> None:
        for receipt in receipts:
            known = self._subscriptions.get(receipt.name)
            if known is not None:
                for key, version in receipt.parts:
                    self._store.nacked(known[0], key, version)
            _LOGGER.warning(
                "client refused a secret",
                extra={
                    "secret": receipt.name,
                    "version": receipt.version,
                    "error": error,
                    **self._labels(),
                },
            )

    def _close(self, name: str) -> None:
        known = self._subscriptions.take(name)
        if known is not None:
            subscription, size, _ = known
            self.held -= size
            self._store.close_subscription(subscription)
