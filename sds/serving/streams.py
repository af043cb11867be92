"""Live streams: one :class:`Stream` each, gathered by caller in a :class:`Hub`.

Owns the way from a change to a write. Invariants: each stream has at most one write under way and
no queue; while it is under way changes only mark names as due, so a slow reader costs nobody else
anything and gets the latest when it reads. A stream keeps of a request only names, nonces and a
few texts of the node. What was sent, ACKed and let go is told to the store, under one subscription
per stream and name.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

from sds.errors import CallEndedError, LimitError, ProtocolError
from sds.serving.catalog import CallerView, newest
from sds.serving.encode import SECRET_TYPE, Resource, delta_response, sotw_response
from sds.serving.observer import Event, Method
from sds.serving.subscription import DeltaSubscription, SotwSubscription
from sds.serving.wire import NodeInfo, parse_delta_request, parse_discovery_request
from sds.transport.rate import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sds.errors import SdsError
    from sds.secrets.store import SecretStore, SubscriptionId
    from sds.serving.catalog import Catalog
    from sds.serving.limits import Limits
    from sds.serving.observer import Observer
    from sds.serving.subscription import Answer, Outcome, Receipt
    from sds.workload.entitlement import Caller, Entitlement

logger = logging.getLogger("sds.serving.streams")

_NO_NODE: Final = NodeInfo()
_NONCE_BYTES: Final = 12
_OTHER_TYPES_LOGGED: Final = 16
DELTA_METHODS: Final = frozenset({Method.DELTA, Method.ADS_DELTA})
ADS_METHODS: Final = frozenset({Method.ADS_STREAM, Method.ADS_DELTA})


class Transport(Protocol):
    """The stream's way out: what a call's context gives."""

    async def write(self, message: bytes) -> None:
        """Send one message; returns when the transport can take another."""
        ...


class Stream:
    """One stream of one client.

    Args:
        transport: where responses go.
        hub: the caller's.
        method: which remote call it is.
        limits: what the client may do.
        observer: who counts.
    """

    __slots__ = (
        "_bucket",
        "_limits",
        "_loop",
        "_observer",
        "_other_types",
        "_subscriptions",
        "_transport",
        "_view",
        "_writer",
        "_writing",
        "ending",
        "hub",
        "method",
        "node",
        "peer",
        "subscription",
        "task",
    )

    def __init__(
        self,
        transport: Transport,
        *,
        hub: Hub,
        method: Method,
        limits: Limits,
        observer: Observer,
        peer: str,
    ) -> None:
        """See the class; called in the task that reads the stream."""
        self._transport = transport
        self._limits = limits
        self._observer = observer
        self._bucket = TokenBucket(
            per_second=limits.requests_per_second,
            burst=limits.request_burst,
            what="requests a second on one stream",
            advice="ask for all names in fewer requests, or raise limits.requests_per_second",
        )
        self._loop = asyncio.get_running_loop()
        self._other_types: set[str] | None = None
        self._subscriptions: dict[str, SubscriptionId] = {}
        self._view: CallerView | None = None
        self._writer: asyncio.Task[None] | None = None
        self._writing = False
        self.task = asyncio.current_task()
        self.ending: SdsError | None = None
        self.hub = hub
        self.method = method
        self.node = _NO_NODE
        self.peer = peer
        self.subscription: SotwSubscription[Resource] | DeltaSubscription[Resource] = (
            DeltaSubscription() if method in DELTA_METHODS else SotwSubscription()
        )

    # --- requests -------------------------------------------------------------------------------

    async def take(self, data: bytes, now: float) -> None:
        """Take one request and send what it asks for.

        Args:
            data: the message as it came.
            now: seconds of a monotonic clock.

        Raises:
            ProtocolError: the request is malformed, of a type that is not served, or over a limit.
        """
        self._bucket.take(now)
        self._observer.count(Event.REQUEST, self.method)
        limit = self._limits.names_per_stream
        subscription = self.subscription
        if isinstance(subscription, SotwSubscription):
            parsed = parse_discovery_request(data, max_names=limit)
            self._meet(parsed.node)
            if not self._is_served(parsed.type_url):
                return
            self._digest(subscription.receive(parsed.request))
        else:
            delta = parse_delta_request(data, max_names=limit)
            self._meet(delta.node)
            if not self._is_served(delta.type_url):
                return
            self._digest(subscription.receive(delta.request))
        if len(subscription) > limit:
            raise LimitError(
                f"one stream watches more than {limit} secrets",
                advice="use more streams, or raise limits.names_per_stream",
            )
        if not self._writing:
            self._writing = True
            await self._write_what_is_due()

    def _meet(self, node: NodeInfo | None) -> None:
        """Remember the node of the first request; later ones need not carry it."""
        if self._view is None:
            self.node = node if node is not None else _NO_NODE
            self._view = self.hub.view(strong=self.node.wants_spiffe_validator)

    def _is_served(self, type_url: str) -> bool:
        if type_url == SECRET_TYPE:
            return True
        if self.method not in ADS_METHODS:
            if not type_url:
                return True  # the method says which type is meant
            raise ProtocolError(
                f"type_url {type_url[:200]!r} is not served here",
                advice=f"ask for {SECRET_TYPE}",
                reason="wrong_type_url",
            )
        if not type_url:
            raise ProtocolError(
                "a request on the aggregated stream has no type_url",
                advice=f"ask for {SECRET_TYPE}",
                reason="wrong_type_url",
            )
        self._observer.count(Event.OTHER_TYPE, self.method)
        if self._other_types is None:
            self._other_types = set()
        if type_url not in self._other_types and len(self._other_types) < _OTHER_TYPES_LOGGED:
            self._other_types.add(type_url)
            logger.warning(
                "left unanswered: another type on the aggregated stream",
                extra={"type_url": type_url[:200], "node": self.node.id, **self.hub.labels()},
            )
        return False

    def _digest(self, outcome: Outcome) -> None:
        """Book what the request meant."""
        count = self._observer.count
        if outcome.acked:
            count(Event.ACK, self.method)
            for receipt in outcome.acked:
                self._book_acked(receipt)
        if outcome.error is not None:
            count(Event.NACK, self.method)
            self._observer.nacked(outcome.error)
            self._book_nacked(outcome.nacked, outcome.error)
        if outcome.stale:
            count(Event.STALE_NONCE, self.method)
        if outcome.dropped:
            self.hub.unwatch(self, outcome.dropped)
            for name in outcome.dropped:
                self._close_subscription(name)
        if outcome.added:
            self.hub.watch(self, outcome.added)
        self.hub.watch_everything(self, on=self.subscription.wildcard)

    def _book_acked(self, receipt: Receipt) -> None:
        subscription = self._subscriptions.get(receipt.name)
        if subscription is not None:
            for key, version in receipt.parts:
                self.hub.store.acked(subscription, key, version)

    def _book_nacked(self, receipts: Iterable[Receipt], error: str) -> None:
        for receipt in receipts:
            subscription = self._subscriptions.get(receipt.name)
            if subscription is not None:
                for key, version in receipt.parts:
                    self.hub.store.nacked(subscription, key, version)
            logger.warning(
                "client refused a secret",
                extra={
                    "secret": receipt.name,
                    "version": receipt.version,
                    "error": error,
                    "node": self.node.id,
                    **self.hub.labels(),
                },
            )

    def _close_subscription(self, name: str) -> None:
        subscription = self._subscriptions.pop(name, None)
        if subscription is not None:
            self.hub.store.close_subscription(subscription)

    # --- responses ------------------------------------------------------------------------------

    def kick(self) -> None:
        """Something may be due: write it, unless a write is under way, which will look again."""
        if not self._writing:
            self._writing = True
            self._writer = self._loop.create_task(self._write_in_background())

    async def _write_in_background(self) -> None:
        try:
            await self._write_what_is_due()
        except CallEndedError:
            # The call ended between the change and the write; its reader ends by itself.
            logger.debug("a stream ended before a push", extra=self.hub.labels())

    async def _write_what_is_due(self) -> None:
        try:
            while (message := self._next()) is not None:
                await self._transport.write(message)
        finally:
            self._writing = False

    def _next(self) -> bytes | None:
        """Encode and book the next response."""
        view = self._view
        if view is None or not self.subscription.has_due():
            return None
        nonce = os.urandom(_NONCE_BYTES).hex()
        answer = self.subscription.respond(view, nonce)
        if answer is None:
            return None
        self._book_answer(answer)
        if not answer.has_content:
            return None
        count = self._observer.count
        count(Event.RESPONSE, self.method)
        version = response_version(answer.resources)
        if self.method in DELTA_METHODS:
            return delta_response(answer.resources, answer.removed, version=version, nonce=nonce)
        return sotw_response(answer.resources, version=version, nonce=nonce)

    def _book_answer(self, answer: Answer[Resource]) -> None:
        count = self._observer.count
        if answer.resources:
            count(Event.SENT, self.method, len(answer.resources))
            for resource in answer.resources:
                self._book_sent(resource.receipt)
        if answer.held:
            count(Event.HELD, self.method, len(answer.held))
            for receipt in answer.held:
                self._book_sent(receipt)
                self._book_acked(receipt)
        if answer.removed:
            count(Event.REMOVED, self.method, len(answer.removed))
        if answer.absent:
            count(Event.ABSENT, self.method, len(answer.absent))
            logger.info(
                "asked for secrets that do not exist for this caller (yet)",
                extra={
                    "secrets": " ".join(answer.absent[:10]),
                    "more": max(0, len(answer.absent) - 10),
                    "node": self.node.id,
                    **self.hub.labels(),
                },
            )

    def _book_sent(self, receipt: Receipt) -> None:
        if not receipt.parts:
            return
        store = self.hub.store
        subscription = self._subscriptions.get(receipt.name)
        if subscription is None:
            subscription = self._subscriptions[receipt.name] = store.open_subscription()
        for key, version in receipt.parts:
            store.sent(subscription, key, version)

    # --- the end --------------------------------------------------------------------------------

    def end(self, error: SdsError) -> None:
        """End the stream with this error (from outside of its task)."""
        if self.ending is not None or self.task is None:
            return
        self.ending = error
        self.task.cancel()

    async def close(self) -> None:
        """The call is over: let go of everything that was sent, and of the writer."""
        for subscription in self._subscriptions.values():
            self.hub.store.close_subscription(subscription)
        self._subscriptions.clear()
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.cancel()
            await asyncio.wait([writer])
        # Circles of references end here, not when the garbage collector comes by: what a view has
        # found are private keys.
        self._view = None
        self.task = None
        self.ending = None


class Hub:
    """The streams of one caller, and which of them watch which name.

    Args:
        entitlement: who the caller is, over time.
        catalog: where secrets are found.
    """

    def __init__(self, entitlement: Entitlement, catalog: Catalog) -> None:
        self.entitlement = entitlement
        self.store: SecretStore = catalog.store
        self.streams: dict[Stream, None] = {}
        self._catalog = catalog
        self._views: dict[bool, CallerView] = {}
        self._watching: dict[str, dict[Stream, None]] = {}
        self._watching_everything: dict[Stream, None] = {}
        self._versions: dict[str, str | None] = {}
        self._labels: dict[str, Any] = {"workload": self.caller.name}
        self._stop_listening = entitlement.listen(self._on_recognition)

    @property
    def caller(self) -> Caller:
        """Who the caller is now."""
        return self.entitlement.current

    def labels(self) -> dict[str, Any]:
        """What a log line says about the caller."""
        return self._labels

    def view(self, *, strong: bool) -> CallerView:
        """What the caller may have; one view for all streams."""
        view = self._views.get(strong)
        if view is None:
            view = self._views[strong] = CallerView(self._catalog, self.caller, strong=strong)
        return view

    def watch(self, stream: Stream, names: Iterable[str]) -> None:
        """The stream wants to hear of these names."""
        for name in names:
            watchers = self._watching.get(name)
            if watchers is None:
                watchers = self._watching[name] = {}
                self._versions[name] = self._version(name)
            watchers[stream] = None

    def unwatch(self, stream: Stream, names: Iterable[str]) -> None:
        """The stream does not want to hear of these names any more."""
        for name in names:
            watchers = self._watching.get(name)
            if watchers is not None:
                watchers.pop(stream, None)
                if not watchers:
                    del self._watching[name]
                    self._versions.pop(name, None)

    def watch_everything(self, stream: Stream, *, on: bool) -> None:
        """The stream wants to hear of all names, or of those only that it watches."""
        if on:
            self._watching_everything[stream] = None
        else:
            self._watching_everything.pop(stream, None)

    def leave(self, stream: Stream) -> None:
        """The stream is over."""
        self.streams.pop(stream, None)
        self._watching_everything.pop(stream, None)
        self.unwatch(stream, stream.subscription.names())

    def refresh(self) -> None:
        """Content or recognition may have changed: look again, push what differs.

        Session ticket keys go first: a changed context must not meet tickets of the time before.
        """
        for view in self._views.values():
            view.clear(self.caller)
        changed = []
        for name, known in self._versions.items():
            version = self._version(name)
            if version != known:
                self._versions[name] = version
                changed.append(name)
        tickets = self._catalog.aliases.session_tickets
        changed.sort(key=lambda name: name not in tickets)
        for name in changed:
            for stream in self._watching[name]:
                stream.subscription.touch((name,))
                stream.kick()
        for stream in self._watching_everything:
            stream.subscription.touch_all()
            stream.kick()

    def close(self) -> None:
        """The last stream is over: let go of every secret that was looked up."""
        self._stop_listening()
        self._stop_listening = _already_stopped  # the other one refers to us
        for view in self._views.values():
            view.clear(self.caller)
        self._views.clear()

    def _on_recognition(self) -> None:
        if self.entitlement.ended is not None:
            self.end(self.entitlement.ended)
        else:
            self.refresh()

    def end(self, error: SdsError) -> None:
        """End all streams."""
        for stream in list(self.streams):
            stream.end(error)

    def _version(self, name: str) -> str | None:
        resource = self.view(strong=False).find(name)
        return resource.receipt.version if resource is not None else None


def _already_stopped() -> None:
    """Do nothing."""


def response_version(resources: Sequence[Resource]) -> str:
    """The version of a whole response: that of its newest resource."""
    if len(resources) == 1:
        return resources[0].receipt.version
    if not resources:
        return ""
    return newest(resource.receipt.version for resource in resources)
