"""One live stream of one client: requests in, responses out.

Owns the way from a change to a write. Invariants: a stream has at most one write under way and no
queue; while it is under way, changes only mark names as due, so a slow reader costs nobody else
anything and gets the latest when it reads; a stream keeps of a request only names, nonces and a few
texts of the node.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

from sds.errors import CallEndedError, LimitError, ProtocolError, SdsError
from sds.serving.conversation import Conversation
from sds.serving.observer import ADS_METHODS, DELTA_METHODS, Event
from sds.serving.wire import NodeInfo, parse_delta_request, parse_discovery_request
from sds.transport.rate import TokenBucket

if TYPE_CHECKING:
    from sds.serving.limits import ServingLimits
    from sds.serving.observer import Method, ServingObserver
    from sds.serving.session import CallerSession

_LOGGER = logging.getLogger("sds.serving.streams")

_NO_NODE: Final = NodeInfo()
_OTHER_TYPES_LOGGED: Final = 16


class Transport(Protocol):
    """The stream's way out: what a call's context gives."""

    async def write(self, message: bytes) -> None:
        """Send one message; returns when the transport can take another."""
        ...


class Stream:
    """One stream of one client; made in the task that reads it.

    Args:
        transport: where responses go.
        session: the caller's.
        method: which remote call it is.
        types: the resource types that the call serves.
        limits: what the client may do.
        observer: who counts.
        peer: what the connection is called.
    """

    __slots__ = (
        "_bucket",
        "_limits",
        "_loop",
        "_met",
        "_observer",
        "_other_types",
        "_transport",
        "_types",
        "_writer",
        "_writing",
        "conversations",
        "ending",
        "method",
        "node",
        "peer",
        "session",
        "task",
    )

    def __init__(
        self,
        transport: Transport,
        *,
        session: CallerSession,
        method: Method,
        types: tuple[str, ...],
        limits: ServingLimits,
        observer: ServingObserver,
        peer: str,
    ) -> None:
        self._transport: Transport | None = transport
        self._types = types
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
        self._writer: asyncio.Task[None] | None = None
        self._writing = False
        self.conversations: dict[str, Conversation] = {}
        self.task = asyncio.current_task()
        self.ending: SdsError | None = None
        self.session = session
        self.method = method
        self._met = False
        self.node = _NO_NODE
        self.peer = peer

    def labels(self) -> dict[str, Any]:
        """What a log line says about the client."""
        return {"node": self.node.id, **self.session.labels()}

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
        parse = parse_delta_request if self.method in DELTA_METHODS else parse_discovery_request
        parsed = parse(data, max_names=limit)
        if not self._met:  # only the first request of a stream must carry the node
            self._met = True
            self.node = parsed.node if parsed.node is not None else _NO_NODE
        conversation = self._conversation(parsed.type_url)
        if conversation is None:
            return
        conversation.receive(parsed.request)
        if sum(len(one.subscription) for one in self.conversations.values()) > limit:
            raise LimitError(
                f"one stream watches more than {limit} names",
                advice="use more streams, or raise limits.names_per_stream",
            )
        if not self._writing:
            self._writing = True
            await self._write_what_is_due()

    def _conversation(self, type_url: str) -> Conversation | None:
        """The conversation about a type; None if the stream ignores the type."""
        if not type_url and self.method not in ADS_METHODS:
            (type_url,) = self._types  # the method says which type is meant
        found = self.conversations.get(type_url)
        if found is not None:
            return found
        if type_url in self._types:
            found = self.conversations[type_url] = Conversation(
                self,
                type_url,
                snapshot=self.session.snapshot(type_url, strong=self.node.wants_spiffe_validator),
                observer=self._observer,
            )
            return found
        if self.method in ADS_METHODS and type_url:
            self._leave_unanswered(type_url)
            return None
        raise ProtocolError(
            f"type_url {type_url[:200]!r} is not served here"
            if type_url
            else "a request on the aggregated stream has no type_url",
            advice=f"ask for {' or '.join(self._types)}",
            reason="wrong_type_url",
        )

    def _leave_unanswered(self, type_url: str) -> None:
        self._observer.count(Event.OTHER_TYPE, self.method)
        if self._other_types is None:
            self._other_types = set()
        if type_url not in self._other_types and len(self._other_types) < _OTHER_TYPES_LOGGED:
            self._other_types.add(type_url)
            _LOGGER.warning(
                "left unanswered: another type on the aggregated stream",
                extra={"type_url": type_url[:200], **self.labels()},
            )

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
            _LOGGER.debug("a stream ended before a push", extra=self.session.labels())
        except Exception:
            # Its reader would never hear of it, and the client would wait for ever.
            _LOGGER.exception("a push failed: its stream ends", extra=self.labels())
            self.end(SdsError("a push failed; the server's log says why", reason="internal"))

    async def _write_what_is_due(self) -> None:
        try:
            while self._transport is not None and (message := self._next()) is not None:
                await self._transport.write(message)
        finally:
            self._writing = False

    def _next(self) -> bytes | None:
        for conversation in self.conversations.values():
            message = conversation.next()
            if message is not None:
                return message
        return None

    # --- the end --------------------------------------------------------------------------------

    def end(self, error: SdsError) -> None:
        """End the stream with this error (from outside of its task)."""
        if self.ending is not None or self.task is None:
            return
        self.ending = error
        self.task.cancel()

    async def close(self) -> None:
        """The call is over: let go of everything that was sent, and of the writer."""
        for conversation in self.conversations.values():
            conversation.close()
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.cancel()
            await asyncio.wait([writer])
        # Circles of references end here, not when the garbage collector runs: what a snapshot has
        # found includes private keys.
        self.conversations.clear()
        self._transport = None
        self.task = None
        self.ending = None
