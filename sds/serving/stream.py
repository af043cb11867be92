"""One live stream of one client: requests in, responses out.

Owns the way from a change to a write. Invariants: a stream has at most one write under way and no
queue; while a write is under way, or a request is being taken, changes only mark names as due, so a
slow reader costs nobody else anything and gets the latest content when it reads; names are looked
up in slices (:mod:`sds.serving.slices`), and a later request waits until the one before is done; of
a request, a stream keeps only names, nonces and a few texts of the node.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, Final

from sds.errors import CallEndedError, LimitError, ProtocolError, SdsError
from sds.faults import report
from sds.serving.client_node import NodeInfo
from sds.serving.conversation import Conversation
from sds.serving.observer import ADS_METHODS, DELTA_METHODS, REQUEST, Event
from sds.serving.slices import SLICE, Pace
from sds.serving.wire import (
    delta_discovery_request,
    discovery_request,
    small_delta_request,
    small_discovery_request,
)
from sds.transport.rate import TokenBucket

if TYPE_CHECKING:
    from sds.serving.call_output import CallOutput
    from sds.serving.limits import ServingLimits
    from sds.serving.observer import Method, ServingObserver
    from sds.serving.session import CallerSession
    from sds.serving.slices import Slices
    from sds.serving.wire import ParsedDelta, ParsedSotw

_LOGGER = logging.getLogger("sds.serving.streams")

_NO_NODE: Final = NodeInfo()
_OTHER_TYPES_LOGGED: Final = 16


class Stream:
    """One stream of one client; made in the task that reads it.

    Args:
        output: takes the responses.
        session: the caller's session.
        method: which remote call it is.
        types: the resource types that the call serves.
        limits: what the client may do.
        observer: counts events.
        peer: the name of the connection.
        owner: the owner of the connection, whose budget pays for the watched names.
    """

    __slots__ = (
        "_bucket",
        "_limits",
        "_met",
        "_observer",
        "_other_types",
        "_output",
        "_pace",
        "_taking",
        "_types",
        "_writer",
        "_writing",
        "conversations",
        "ending",
        "method",
        "node",
        "owner",
        "peer",
        "session",
        "task",
    )

    def __init__(
        self,
        output: CallOutput,
        *,
        session: CallerSession,
        method: Method,
        types: tuple[str, ...],
        limits: ServingLimits,
        observer: ServingObserver,
        peer: str,
        owner: str,
    ) -> None:
        self._output: CallOutput | None = output
        self._pace = Pace(output)
        self._types = types
        self._limits = limits
        self._observer = observer
        self._bucket = TokenBucket(
            per_second=limits.requests_per_second,
            burst=limits.request_burst,
            what="requests a second on one stream",
            advice="ask for all names in fewer requests, or raise limits.requests_per_second",
        )
        self._other_types: set[int] | None = None
        """Hashes of the types that were left unanswered; clients choose the texts."""
        self._writer: asyncio.Task[None] | None = None
        self._writing = False
        self._taking = False
        """Whether a request is being taken; nothing is due until that is done."""
        self.conversations: dict[str, Conversation] = {}
        self.task = asyncio.current_task()
        self.ending: SdsError | None = None
        self.session = session
        self.method = method
        self._met = False
        self.node = _NO_NODE
        self.peer = peer
        self.owner = owner

    def labels(self) -> dict[str, Any]:
        """Return what a log line says about the client."""
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
        if self.ending is not None:
            raise self.ending
        self._bucket.take(now)
        self._observer.count(REQUEST, self.method)
        self._taking = True
        try:
            await self._take(data)
        finally:
            self._taking = False
        if not self._writing and self._has_due():  # an ACK makes nothing due
            self._writing = True
            await self._write_what_is_due()

    def take_at_once(self, data: bytes, now: float) -> bool:
        """Take a request if it only ACKs a response, as nearly every request does.

        The arguments are those of :meth:`take`.

        Returns:
            Whether it was taken. If not, nothing has changed, and it is one for :meth:`take`.
        """
        if self._taking or self.ending is not None:
            return False
        try:
            self._bucket.take(now)
        except LimitError:
            return False
        if not self._acknowledge(data):
            self._bucket.give_back()
            return False
        self._observer.count(REQUEST, self.method)
        return True

    def _acknowledge(self, data: bytes) -> bool:
        """Do what :meth:`take_at_once` does, apart from counting."""
        try:
            parsed = self._small(data)
        except ProtocolError:
            return False  # the call ends with it, where it is read again
        if parsed is None:
            return False
        conversation = self.conversations.get(parsed.type_url)
        return conversation is not None and conversation.acknowledge(parsed.request)

    def _small(self, data: bytes) -> ParsedSotw | ParsedDelta | None:
        limit = self._limits.names_per_stream
        if self.method in DELTA_METHODS:
            return small_delta_request(data, max_names=limit)
        return small_discovery_request(data, max_names=limit)

    async def _take(self, data: bytes) -> None:
        limit = self._limits.names_per_stream
        parsed = self._small(data)
        if parsed is None:
            read = delta_discovery_request if self.method in DELTA_METHODS else discovery_request
            work: Slices[ParsedSotw | ParsedDelta] = read(data, max_names=limit)
            parsed = await self._pace.run(work)
        if not self._met:  # only the first request of a stream must carry the node
            self._met = True
            self.node = parsed.node if parsed.node is not None else _NO_NODE
        conversation = self._conversation(parsed.type_url)
        if conversation is None:
            return
        await conversation.receive(parsed.request, self._pace)
        watched = 0
        for one in self.conversations.values():
            watched += len(one.subscription)
        if watched > limit:
            raise LimitError(
                f"one stream watches more than {limit} names",
                advice="use more streams, or raise limits.names_per_stream",
            )

    def _conversation(self, type_url: str) -> Conversation | None:
        """Return the conversation about a type; None if the stream ignores the type."""
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
        known = hash(type_url)
        if known not in self._other_types and len(self._other_types) < _OTHER_TYPES_LOGGED:
            self._other_types.add(known)
            _LOGGER.warning(
                "no answer to a request of another type on the aggregated stream",
                extra={"type_url": type_url[:200], **self.labels()},
            )

    # --- responses ------------------------------------------------------------------------------

    def kick(self) -> None:
        """Write what may be due soon, unless work that is under way will look anyway."""
        if not (self._writing or self._taking or self._output is None):
            self._writing = True
            self._output.soon(self._push)

    def _push(self) -> bool:
        """Send one response of what is due, as a job; say whether to run it again."""
        try:
            output = self._output
            idle = output is None or self._taking or self.ending is not None
            message = None if idle else self._next()
            if output is None or idle:
                self._writing = False  # the code that takes the request will look
            elif message is not None and not output.send(message):
                self._writer = output.start(functools.partial(self._write_in_background, output))
            elif self._has_due():
                return True
            else:
                self._writing = False
        except Exception as error:  # noqa: BLE001  the boundary of one stream
            self._failed(error)
        return False

    async def _write_in_background(self, output: CallOutput) -> None:
        """Wait until the transport can take another response, and write what is due then."""
        try:
            await output.ready()
            await self._write_what_is_due()
        except Exception as error:  # noqa: BLE001  the boundary of one stream
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """End the stream after a failed push; otherwise the client would wait forever."""
        self._writing = False
        if isinstance(error, CallEndedError):
            # The call ended between the change and the write; the reader ends by itself.
            _LOGGER.debug("a stream ended before a push", extra=self.session.labels())
        elif isinstance(error, LimitError):
            self.end(error)
        else:
            report("stream", error, **self.labels())
            self.end(SdsError("a push failed; the server's log says why", reason="internal"))

    async def _write_what_is_due(self) -> None:
        """Write until nothing is due, or until a request is being taken."""
        try:
            while self._output is not None and not self._taking and self._has_due():
                written = self._next()
                if written is not None:
                    passed, written = [written], None  # what waits is counted where it waits
                    await self._output.write(passed.pop())
                if self._has_due() and self._pace.spend(SLICE):
                    await self._pace.turn()
        finally:
            self._writing = False

    def _has_due(self) -> bool:
        if self.ending is not None:
            return False
        for conversation in self.conversations.values():  # noqa: SIM110  for every push: no generator
            if conversation.has_due():
                return True
        return False

    def _next(self) -> bytes | None:
        """Make the next response; None if a slice of what is due needs none."""
        for conversation in self.conversations.values():
            message = conversation.next()
            if message is not None:
                return message
        return None

    # --- the end --------------------------------------------------------------------------------

    def end(self, error: SdsError) -> None:
        """End the stream with this error, from outside of its task."""
        if self.ending is not None or self._output is None:
            return
        self.ending = error  # from now on the stream takes and sends nothing
        self._output.soon(self._end_reader)  # thousands may end together, so in turns

    def _end_reader(self) -> bool:
        """Let the reader end with :attr:`ending`, as a job that runs once."""
        if self.task is not None:
            self.task.cancel()
        return False

    async def close(self) -> None:
        """Let go of everything that was sent and of the writer, because the call is over."""
        self._output = None
        self.task = None
        self.ending = None
        writer, self._writer = self._writer, None
        try:
            if writer is not None and not writer.done():
                writer.cancel()
                await asyncio.wait([writer])
        finally:  # a cancellation may come while this waits; keys must not count as in use for ever
            await self._pace.finish(self._close_conversations())

    def _close_conversations(self) -> Slices[None]:
        for conversation in self.conversations.values():
            yield from conversation.close()
        # Break circles of references here instead of waiting for the garbage collector, because a
        # snapshot contains private keys.
        self.conversations.clear()
