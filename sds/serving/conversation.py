"""One type of resource on one stream: what the client asks for, what is due, what is sent.

Owns the subscription of one type and its books. A stream of the secret discovery service has one
conversation, an aggregated stream one for each type. Invariant: versions, nonces and ACKs of two
types never mix, as if they were on two streams (Envoy's "xDS REST and gRPC protocol", "Aggregated
Discovery Service": each type has its own versions and nonces).
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Final

from sds.serving.deliveries import Deliveries
from sds.serving.encode import (
    delta_heartbeat,
    delta_response,
    sotw_response,
)
from sds.serving.observer import ADS_METHODS, DELTA_METHODS, RESPONSE, Event
from sds.serving.secret_catalog import newest
from sds.serving.slices import SLICE, sliced
from sds.serving.subscription import DeltaRequest, DeltaSubscription, SotwSubscription

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.serving.encode import Resource
    from sds.serving.observer import ServingObserver
    from sds.serving.slices import Pace, Slices
    from sds.serving.snapshot import Snapshot
    from sds.serving.stream import Stream
    from sds.serving.subscription import SotwRequest

_RUN: Final = os.urandom(6).hex()
_numbers: Final = itertools.count(1)


class Conversation:
    """What one stream says about one type.

    Args:
        stream: the stream that it is part of.
        type_url: the type of the resources.
        snapshot: what the caller may have of that type.
        observer: counts events.
    """

    __slots__ = (
        "_beats",
        "_deliveries",
        "_everything",
        "_observer",
        "_parts",
        "_passing",
        "_snapshot",
        "_version",
        "name_bytes",
        "stream",
        "subscription",
        "type_url",
    )

    def __init__(
        self, stream: Stream, type_url: str, *, snapshot: Snapshot, observer: ServingObserver
    ) -> None:
        self.stream = stream
        self.type_url = type_url
        self.name_bytes = 0
        """Bytes of memory of the watched names; the session counts them."""
        kind = DeltaSubscription if stream.method in DELTA_METHODS else SotwSubscription
        self.subscription: SotwSubscription[Resource] | DeltaSubscription[Resource] = kind(
            # An Envoy that connects again sends an empty list for each type that it used before.
            empty_is_all=stream.method not in ADS_METHODS
        )
        self._parts = 0
        """Bytes of the deliveries and of the client's words that were counted so far."""
        self._passing = 0
        """Bytes of names that are no longer asked for but still have to be looked at."""
        self._everything = False
        """Whether the session knows that the client watches all names."""
        self._beats = False
        self._version = ""
        self._snapshot = snapshot
        self._observer = observer
        self._deliveries = Deliveries(
            stream.session.store, observer, stream.method, labels=stream.labels
        )

    async def receive(self, request: SotwRequest | DeltaRequest, pace: Pace) -> None:
        """Take one request, in slices; :meth:`next` is not called meanwhile.

        Raises:
            LimitError: the names take too much memory.
        """
        subscription = self.subscription
        if isinstance(request, DeltaRequest):
            assert isinstance(subscription, DeltaSubscription)  # one method, one kind of request
            outcomes = subscription.outcomes(request)
        else:
            assert isinstance(subscription, SotwSubscription)
            outcomes = subscription.outcomes(request)
        session = self.stream.session
        for outcome in outcomes:
            self._deliveries.asked(outcome)
            self._count_parts()
            if outcome.acked or outcome.nacked:
                session.answered(self)
            if outcome.dropped:
                session.unwatch(self, outcome.dropped)
            if outcome.passing:
                self._passing += outcome.passing
                session.take_names(self, outcome.passing)
            if pace.spend(SLICE if outcome.passing else len(outcome.dropped)):
                await pace.turn()
            # A change before a name is watched is not lost: the name is looked up after that.
            for name in outcome.added:
                session.watch(self, name)
                if pace.spend():
                    await pace.turn()
        if subscription.wildcard is not self._everything:
            self._everything = subscription.wildcard
            session.watch_everything(self, on=subscription.wildcard)

    def acknowledge(self, request: SotwRequest | DeltaRequest) -> bool:
        """Take a request at once if it is a plain ACK; otherwise do nothing and return False."""
        subscription = self.subscription
        if isinstance(request, DeltaRequest):
            assert isinstance(subscription, DeltaSubscription)  # one method, one kind of request
            outcome = subscription.acknowledge(request)
        else:
            assert isinstance(subscription, SotwSubscription)
            outcome = subscription.acknowledge(request)
        if outcome is None:
            return False
        self._deliveries.asked(outcome)
        self.stream.session.answered(self)
        return True

    def has_due(self) -> bool:
        """Say whether :meth:`next` has something to look at."""
        return self._beats or self.subscription.has_due()

    def next(self) -> bytes | None:
        """Make the response for a slice of what is due, and enter it in the books; None if empty.

        :meth:`has_due` says whether more is due.
        """
        if not self.subscription.has_due():
            return self._heartbeat() if self._beats else None
        nonce = next_nonce()
        answer = self.subscription.respond(self._snapshot, nonce, SLICE)
        if self._passing and not self.subscription.has_due():
            passing, self._passing = self._passing, 0
            self.stream.session.give_back_names(self, passing)
        if answer is None:
            return None
        self._deliveries.answered(answer)
        self._count_parts()
        if not (answer.resources or answer.removed):
            return None
        method = self.stream.method
        self._observer.count(RESPONSE, method)
        version = response_version(answer.resources)
        self._version = version or self._version
        if method in DELTA_METHODS:
            return delta_response(
                answer.resources,
                answer.removed,
                type_url=self.type_url,
                version=version,
                nonce=nonce,
            )
        return sotw_response(answer.resources, type_url=self.type_url, version=version, nonce=nonce)

    def _count_parts(self) -> None:
        """Count the memory of deliveries, and of the client's words, as that of the names.

        Raises:
            LimitError: the names take too much memory.
        """
        if difference := self._deliveries.held + self.subscription.words - self._parts:
            self._parts += difference
            if difference > 0:
                self.stream.session.take_names(self, difference)
            else:
                self.stream.session.give_back_names(self, -difference)

    def extend_lives(self) -> None:
        """Send a heartbeat for what the client has, after what is due."""
        self._beats = True
        self.stream.kick()

    def _heartbeat(self) -> bytes | None:
        """Make a response that extends the lives of what the client has, and changes nothing.

        In delta it has no content (xDS, "TTL"). In state of the world it repeats the content,
        because Envoy 1.36 to 1.40 drop a heartbeat without content before they look at its TTL
        (``GrpcMuxImpl::onDiscoveryResponse``; measured: the filter ended all the same).
        """
        self._beats = False
        alive = [
            resource
            for name, version in self.subscription.sent()
            if (resource := self._snapshot.find(name)) is not None
            and resource.ttl is not None
            and resource.receipt.version == version
        ]
        if not alive:
            return None
        nonce = next_nonce()
        self.subscription.beat(nonce)
        self._observer.count(Event.HEARTBEAT, self.stream.method)
        if self.stream.method in DELTA_METHODS:
            return delta_heartbeat(
                alive, type_url=self.type_url, version=self._version, nonce=nonce
            )
        return sotw_response(alive, type_url=self.type_url, version=self._version, nonce=nonce)

    def current(self, name: str) -> Resource | None:
        """Return the resource that the name stands for now."""
        return self._snapshot.find(name)

    def close(self) -> Slices[None]:
        """Let go of the stream's names and of what it was sent, in slices."""
        session = self.stream.session
        session.watch_everything(self, on=False)
        for names in sliced(self.subscription.names()):
            session.unwatch(self, names)
            self._deliveries.close(names)
            yield len(names)
        self._deliveries.close_all()
        session.gone(self)


def next_nonce() -> str:
    """Return a nonce that no other response has, in this run or another."""
    return f"{_RUN}-{next(_numbers):x}"


def response_version(resources: Sequence[Resource]) -> str:
    """Return the version of a whole response: that of its newest resource."""
    if len(resources) == 1:
        return resources[0].receipt.version
    if not resources:
        return ""
    return newest(resource.receipt.version for resource in resources)
