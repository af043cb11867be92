"""One remote call, from which a handler reads and to which it writes.

Owns :class:`Call`, which takes the place of grpc's own ``ServicerContext``. It has the part of
that interface that our handlers and grpc's health and reflection services use: ``peer``,
``invocation_metadata``, ``write``, ``abort``, and the requests as an asynchronous iterator. One
method is our own: ``caller``.

Invariants: a handler is woken by a job of its owner, unless small messages may be taken without it
(:attr:`Call.at_once`); a handler that reads or writes much in one step waits for its owner's
next turn (:mod:`sds.transport.turns`); the messages that wait for a slow handler take no more than
the stream's window and the message that is being received; a write returns when the transport can
take another, so a slow reader holds up only its own handler; after the call is over, a write raises
:class:`~sds.errors.CallEndedError`, and nothing more is sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from sds.errors import CallEndedError, LimitError, ProtocolError
from sds.transport.headers import RequestHead
from sds.transport.messages import MessageReader
from sds.transport.steps import in_steps

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine
    from contextvars import Context

    from sds.transport.link import Link

_ENDED: Final = RequestHead(b"", "", ())
"""The head of a call that is over, which nobody needs."""
NUMBERS: Final[dict[grpc.StatusCode, int]] = {code: code.value[0] for code in grpc.StatusCode}


_UNNOTICED_BYTES: Final = 512
"""Bytes of waiting requests that need no counting: they are in ``budget.STREAM_BYTES``."""


class AbortedError(Exception):
    """Raised by :meth:`Call.abort` to leave a handler that ended its call with a status."""


class Call:
    """One call of a client; the context that its handler gets."""

    __slots__ = (
        "_any",
        "_deaf",
        "_ended",
        "_given",
        "_head",
        "_held",
        "_link",
        "_loop",
        "_reader",
        "_stream",
        "_told",
        "_turns",
        "_untold",
        "_wake_reader",
        "_wake_writer",
        "at_once",
        "context",
        "deadline",
        "over",
        "owner",
        "task",
    )

    def __init__(
        self,
        link: Link,
        stream: int,
        head: RequestHead,
        *,
        most: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Begin a call whose messages have at most ``most`` bytes."""
        self._link = link
        self._turns = link.turns
        self._stream = stream
        self._head = head
        self._loop = loop
        self._reader = MessageReader(most)
        self._held = self._told = 0
        """Bytes of the head and of requests that wait here or were given to the handler last; and
        how many of them the connection was told of."""
        self._given = 0
        """Of those, the bytes that the handler was given last and has until it asks for more."""
        self._untold = 0
        self._ended = self._deaf = self._any = False
        self.over = False
        """Whether the call has its status, or lost its stream."""
        self.owner = link.owner
        """The owner whose budget the call uses."""
        self._wake_reader: asyncio.Future[None] | None = None
        self._wake_writer: asyncio.Future[None] | None = None
        self.at_once: Callable[[bytes, float], bool] | None = None
        """Is offered each small message that comes alone while the handler waits for one, with the
        seconds of the loop's clock. It takes the message, or returns False and has done nothing:
        then the handler is woken and gets the message. It never raises. Waking costs more than
        what most small messages need."""
        self.deadline: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.context: Context | None = None
        """That of the handler's task."""

    # --- for handlers ---------------------------------------------------------------------------

    def peer(self) -> str:
        """Return the name of the client's connection; no two connections have the same name."""
        return self._link.peer

    @property
    def connection(self) -> Link:
        """Return the connection of the call."""
        return self._link

    def caller(self) -> Any:
        """Return the object that the connection was given at accept: who is at its other end.

        Only the accepting code and the handlers know its type; this package never looks at it.
        """
        return self._link.caller

    @property
    def path(self) -> str:
        """Return ``/service/Method``."""
        return self._head.path

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the request's fields as text; those that end in ``-bin`` are left as they came."""
        return tuple(
            (name.decode(), value.decode("latin-1")) for name, value in self._head.metadata
        )

    async def write(self, message: bytes) -> None:
        """Send one message, and return when the transport can take another.

        Raises:
            CallEndedError: the call is over.
        """
        more = self.send(message)
        del message  # what waits is counted by what is left of it
        if self._turns.step_is_long():
            await self._link.turn()
        if not more:
            await self.ready()

    def send(self, message: bytes) -> bool:
        if self.over:
            raise CallEndedError("the client has gone")
        return self._link.send(self._stream, message)

    async def ready(self) -> None:
        """Return when the transport can take another message."""
        while self._link.blocked(self._stream):
            self._wake_writer = self._loop.create_future()
            try:
                await self._wake_writer
            finally:
                self._wake_writer = None

    @property
    def turn_is_long(self) -> bool:
        return self._turns.step_is_long()

    async def turn(self) -> None:
        await self._link.turn()

    async def quiet(self) -> None:
        """Return at once: here a status follows what was sent, even after a cancelled wait.

        ``grpc.aio`` needs a moment for that, and handlers run on both.
        """

    def soon(self, job: Callable[[], bool]) -> None:
        """Run a job in the owner's turns, until it says that nothing is left."""
        self._link.soon(job)

    def start(self, work: Callable[[], Coroutine[Any, None, None]]) -> asyncio.Task[None]:
        return self._loop.create_task(in_steps(work, self, self._turns), context=self.context)

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        """End the call with this status.

        Raises:
            AbortedError: always.
        """
        self.finish(code, details)
        raise AbortedError

    def cut(self) -> NoReturn:
        """End the call without a status, which a client that does not read would not get.

        Raises:
            AbortedError: always.
        """
        if not self.over:
            self._link.cut(self._stream)
            self.close()
        raise AbortedError

    def client_left(self) -> bool:
        """Say whether nobody waits for the answer any more, although no event has told so yet."""
        return self.over or self._link.client_left()

    async def arrived(self) -> None:
        """Return when the client has sent something of a request, or its end; nothing is read."""
        while not (self._reader.held or self._ended or self.over):
            self._any = True
            self._wake_reader = self._loop.create_future()
            try:
                await self._wake_reader
            finally:
                self._any, self._wake_reader = False, None

    def read_no_more(self) -> None:
        """Drop what else the client sends, because the handler has what it needs."""
        self._deaf = True
        self._reader = MessageReader(0)
        if self._told:
            self._hold()

    def __aiter__(self) -> Call:
        """Iterate over the requests, each as the bytes of one message."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next request.

        Raises:
            AbortedError: the client sent something that is not accepted; the call has its status.
        """
        self._given = 0
        while (message := self._next_message()) is None:
            if self._told:
                self._hold()
            if self._ended:
                self._expect_whole()
                raise StopAsyncIteration
            self._tell_taken()
            self._wake_reader = self._loop.create_future()
            try:
                await self._wake_reader
            finally:
                self._wake_reader = None
        self._given = len(message)
        if self._told or self._given > _UNNOTICED_BYTES:
            self._hold()
        if self._turns.step_is_long():
            await self._link.turn()
        return message

    def _next_message(self) -> bytes | None:
        """Return the next message, None while it is incomplete."""
        if self.over:
            return None
        try:
            return self._reader.take()
        except ProtocolError as error:
            self._refuse(error)
            raise AbortedError from None

    def _expect_whole(self) -> None:
        """End the call if its client ended the request within a message, as grpc does.

        Raises:
            AbortedError: it did.
        """
        if self._reader.held and not self.over:
            self.finish(grpc.StatusCode.INTERNAL, "the request ends within a message")
            raise AbortedError

    def _refuse(self, error: ProtocolError) -> None:
        """End the call because of what the client sent, as "gRPC over HTTP2" says."""
        self.finish(self._status_of(error), str(error))

    def _status_of(self, error: ProtocolError) -> grpc.StatusCode:
        if isinstance(error, LimitError):
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        encoding = self._head.get(b"grpc-encoding")
        # "Compression": compressed although no encoding was named is an error of the client; an
        # encoding that we do not have is UNIMPLEMENTED.
        if encoding is None or encoding == b"identity":
            return grpc.StatusCode.INTERNAL
        return grpc.StatusCode.UNIMPLEMENTED

    # --- for the server -------------------------------------------------------------------------

    def begin(self) -> None:
        """Count the head, which stays as long as the call.

        Raises:
            LimitError: the owner uses too much memory.
        """
        if self._head.held:
            self._hold()

    def feed(self, payloads: list[memoryview], *, ended: bool) -> None:
        """Take bytes of the request.

        The stream's window opens for as many only while the handler reads. If the client sent
        something that is not accepted, the call is over afterwards and has its status.
        """
        if self._deaf:
            return
        try:
            self._untold += self._reader.feed(payloads)
            if payloads and (self._told or self._reader.held > _UNNOTICED_BYTES):
                self._hold()
            self._ended = self._ended or ended
            whole = self._reader.has_message()
        except ProtocolError as error:
            self._refuse(error)
            whole = False
        if whole and self._take_at_once():
            return
        if not whole and self._wake_reader is not None and not self._any:
            self._tell_taken()  # only while the handler reads: else the window bounds what waits
        if (whole or self._any or self._ended or self.over) and self._wake_reader is not None:
            waiting, self._wake_reader = self._wake_reader, None
            self._link.wake(waiting)

    def wake_writer(self) -> None:
        """Wake the handler, because output that was blocked may be free now."""
        if self._wake_writer is not None:
            waiting, self._wake_writer = self._wake_writer, None
            self._link.wake(waiting)

    def finish(self, code: grpc.StatusCode, details: str = "") -> None:
        """End the call with this status; do nothing if it is over."""
        if not self.over:
            self._link.finish(self._stream, NUMBERS[code], details)
            self.close()

    def close(self) -> None:
        """Close the call, because its stream is over, with or without a status."""
        self.over = True
        self.at_once = None  # it refers to what the handler has; this breaks the circle
        self._reader = MessageReader(0)
        self._given = 0
        self._head = _ENDED
        self._hold()
        if self.deadline is not None:
            self.deadline.cancel()

    def forget_task(self, _: asyncio.Task[None]) -> None:
        """Forget the handler's task, which is done.

        A task that was cancelled keeps the frames in which that happened. They keep this call and
        what it was about to write, so only the garbage collector would end that circle.
        """
        self.task = None

    def expire(self) -> None:
        """End the call after the client's ``grpc-timeout``; many calls may end together."""
        self._link.soon(self._expire)

    # --- inside ---------------------------------------------------------------------------------

    def _expire(self) -> bool:
        """End the call, as a job that runs once."""
        if not self.over:
            self.finish(grpc.StatusCode.DEADLINE_EXCEEDED, "the client's grpc-timeout has passed")
            if self.task is not None:
                self.task.cancel()
                self._turns.promise(self.owner)
        return False

    def _take_at_once(self) -> bool:
        """Offer the message to :attr:`at_once`; say whether it was taken."""
        if self.at_once is None or self._wake_reader is None or self._any or self._ended:
            return False
        message = self._reader.whole
        if (
            message is None
            or self._reader.held > _UNNOTICED_BYTES
            or self._turns.step_is_long()
            or not self.at_once(message, self._loop.time())
        ):
            return False
        if not self.over:
            self._reader.take()
            self._tell_taken()
        return True

    def _hold(self) -> None:
        self._held = held = self._reader.held + self._given + self._head.held
        if abs(held - self._told) > _UNNOTICED_BYTES or (self._told and not held):
            difference, self._told = held - self._told, held
            self._link.hold(difference)

    def _tell_taken(self) -> None:
        if self._untold:
            count, self._untold = self._untold, 0
            self._link.taken(self._stream, count)
