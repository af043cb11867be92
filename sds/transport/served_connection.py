"""Serves one connection: it turns bytes into events for calls, and answers into bytes.

Owns the calls of the connection, its socket and its part of the owner's budget. Invariants:
everything that the client causes runs as a bounded job in its owner's turn (:meth:`_work`), and
nothing is read meanwhile; a client that does not greet, breaks HTTP/2 or exceeds its owner's budget
is told so, and its connection is closed within :data:`CLOSING_SECONDS`, whether it reads or not;
when the connection is over, so are its calls, and its budget is given back.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from sds.errors import Http2Error, LimitError
from sds.faults import guarded, report
from sds.transport.budget import STREAM_BYTES
from sds.transport.connection import Connection
from sds.transport.connection_calls import Calls
from sds.transport.frames import ErrorCode
from sds.transport.handling import REFUSALS
from sds.transport.turns import Turns
from sds.transport.unread_output import counted

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from sds.transport.budget import Owner
    from sds.transport.endpoint import SocketEndpoint
    from sds.transport.server import Server

_LOG: Final = logging.getLogger("sds.transport")
CLOSING_SECONDS: Final = 0.5
"""How long a client has to read what it was told before the connection is closed."""
_JOB_SECONDS: Final = 0.0005
"""Time for one job."""
_WORK: Final = 64
"""Units of work (see :mod:`sds.transport.connection`) between two looks at the clock."""
_HIGH_WATER: Final = 64 * 1024
"""Handlers wait if the kernel did not take this many bytes of output."""
_UNNOTICED_BYTES: Final = 4 * 1024
"""A change of fewer bytes is not a reason to look at the owner's budget."""
_number: Final = itertools.count(1)


class Unsent(NamedTuple):
    """The output that one connection had not given to the kernel at one moment.

    Attributes:
        end: the position of its last byte, counted from the connection's beginning.
        streams: the streams on which something waited, each with how often it was drained before.
    """

    end: int
    streams: dict[int, int]


class ServedConnection:
    """One connection and its calls.

    Args:
        server: has the methods and the limits.
        caller: what ``context.caller()`` gives to handlers.
        owner: the owner whose budget it uses.
        on_close: is called once, when the connection is over.
        party: the client's process and socket (see :meth:`~sds.transport.budget.Owner.connect`).
        peer: the connection's name; a number if left out.
    """

    def __init__(
        self,
        server: Server,
        *,
        caller: object,
        owner: Owner,
        on_close: Callable[[], None] | None = None,
        party: str = "",
        peer: str = "",
    ) -> None:
        self.caller = caller
        self.owner = owner
        self._party = party
        self.peer = peer or f"connection:{next(_number)}"
        self._server = server
        self._on_close = on_close
        self._http2 = Connection(server.limits.connection)
        self._writers: set[int] = set()
        """Streams whose handlers wait until the kernel took our output."""
        self._requests = 0
        """Bytes of requests that no handler has taken."""
        self._beside = 0  # bytes of its caller's recognition
        self._held = self._streams = 0
        """The bytes and streams that the owner was told of."""
        self._working = self._more = False
        """Whether a job is under way, and whether it has something to look at without reading."""
        self._stuck = False
        """Whether nothing is read because the client leaves too much output unread."""
        self._loop = asyncio.get_running_loop()
        self.turns = self._turns = Turns.of(self._loop)
        self._calls = Calls(self, self._http2, server, self._turns, self._loop)
        self._lost: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._endpoint: SocketEndpoint | None = None
        self._idle_since = self._loop.time()
        """When the last stream ended."""

    # --- the beginning and the end --------------------------------------------------------------

    def begin(self, accepted: socket.socket) -> None:
        """Begin to serve on an accepted socket, which this owns from now on.

        If the owner has too many connections, this one is turned away and is over.
        """
        try:
            self.owner.connect(self.abort, self._loop.time(), party=self._party)
        except LimitError as error:
            self._server.endpoints.turn_away(accepted, str(error))
            if self._on_close is not None:
                self._loop.call_soon(self._on_close)
            return
        endpoints = self._server.endpoints
        self._endpoint = endpoints.make(accepted, self._loop, self, self._turns.buffer)
        self._server.joined(self)
        seconds = self._server.limits.greeting_seconds
        self._timer = self._loop.call_later(seconds, self._expect_greeting)
        # Most clients have sent something by then: one answer to that, with our greeting.
        self._working = True
        self._turns.queue(self.owner, self, self._work)

    def go_away(self) -> None:
        """Tell the client to go elsewhere with its next calls."""
        self._http2.go_away()
        self._flush()

    async def close(self) -> None:
        """Close once everything is written, or after a moment."""
        if self._endpoint is None:
            return
        if self._lost is None:
            self._lost = self._loop.create_future()
        self._close_soon()
        await self._lost

    def recognise(self, beside: int = 0) -> None:
        """Give the owner a budget of its own, apart from strangers.

        Args:
            beside: how many bytes of memory the recognition of its caller takes.
        """
        self.owner.recognise()
        self._turns.move(self, self._server.budgets.strangers, self.owner)
        if self._endpoint is not None:
            self._beside = beside
            self.settle()

    def abort(self) -> None:
        """Close now; do nothing before :meth:`begin`."""
        if self._endpoint is not None:
            self._endpoint.abort()

    def _close_soon(self) -> None:
        """Close once everything is written, at the latest after :data:`CLOSING_SECONDS`."""
        if self._endpoint is None:
            return
        self._endpoint.close()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(CLOSING_SECONDS, self._endpoint.abort)

    def _end(self, code: ErrorCode, text: str) -> None:
        """Tell the client why the connection is over, end its calls now, and close it."""
        self._http2.go_away(text, code)
        self._end_told(text)

    def _end_told(self, text: str) -> None:
        if self.owner.may_log(self._loop.time()):
            _LOG.info(
                "a connection was closed",
                extra={"peer": self.peer, "owner": self.owner.name, "why": text},
            )
        self._calls.end_all()
        self._http2.drop_streams()
        self._flush()
        self._close_soon()

    def _expect_greeting(self) -> None:
        if not self._http2.greeted:
            self._end(ErrorCode.PROTOCOL_ERROR, "the client did not greet in time")
        elif self._server.limits.idle_seconds is not None:
            self._expect_stream(self._server.limits.idle_seconds)

    def _expect_stream(self, most: float) -> None:
        """Close the connection if it had no stream for so many seconds; else look again."""
        if self._endpoint is None or self._endpoint.is_closed():
            return
        now = self._loop.time()
        idle = 0.0 if self._streams else now - self._idle_since
        if idle >= most:
            self._end(ErrorCode.NO_ERROR, f"there was no call for {most:g} s")
        else:
            self._timer = self._loop.call_later(most - idle, self._expect_stream, most)

    # --- sds.transport.connected_socket.SocketUser -----------------------------------------------

    def readable(self) -> None:
        self._start_work()

    def drained(self) -> None:
        self.settle()
        writers, self._writers = self._writers, set()
        for number in writers:
            self._calls.wake_writer(number)
        if self._stuck:
            self._stuck = False
            self._start_work()

    def recount(self) -> None:
        self.settle()

    def left_unread(self, count: int) -> Callable[[], None] | None:
        self.settle()
        return counted(self.owner, count, self._loop.time())

    def lost(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Whatever happens to the calls, the owner gets its budget back and ``on_close`` is called.
        guarded("connection", self._calls.end_all)()
        guarded("connection", self._http2.drop)()
        self._endpoint = None  # it refers to this object; this breaks the circle
        self._beside = 0
        self.settle()
        self.owner.disconnect(self.abort, party=self._party)
        self._server.left(self)
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)
        if self._on_close is not None:
            self._on_close()

    # --- work -----------------------------------------------------------------------------------

    def _start_work(self) -> None:
        if not self._working:
            self._working = True
            self._turns.run(self.owner, self, self._work)

    def _work(self) -> bool:
        """Look at some of what the client sent, as a job; say whether more is there."""
        try:
            self._working = self._work_some(self._loop.time())
        except Http2Error as error:
            self._working = False
            self._end_told(error.message)
        except LimitError as error:
            self._working = False
            self._end(ErrorCode.ENHANCE_YOUR_CALM, str(error))
        except Exception as error:  # noqa: BLE001  the boundary between one connection and the rest
            self._working = False
            report("connection", error, owner=self.owner.name)
            self.abort()
        return self._working

    def _work_some(self, now: float) -> bool:
        """Do the work of :meth:`_work`.

        Raises:
            Http2Error: the client broke HTTP/2 or TLS.
            LimitError: the owner uses too much memory.
        """
        endpoint, http2 = self._endpoint, self._http2
        if endpoint is None or endpoint.is_closed():
            return False
        if endpoint.backlog > self._server.limits.unread_bytes:
            self._stuck = True
            endpoint.pause_reading()
            return False
        if not self._more and not self._read(endpoint):
            self._flush()
            self.settle()  # a handshake takes memory before there is anything to read
            if self._held > _UNNOTICED_BYTES:
                self.owner.check_room(0, now)
            return _has_more(endpoint)
        ends = self._turns.now() + _JOB_SECONDS
        try:
            while True:
                for event in http2.proceed(now, _WORK):
                    self._calls.on_event(event)
                self._more = http2.busy
                if not self._more or self._turns.now() > ends:
                    break
        finally:
            http2.keep()  # all connections read into one buffer
        self._flush()
        self.settle()
        if endpoint.is_closed():
            return False
        if self._held > _UNNOTICED_BYTES:
            self.owner.check_room(0, now)
        return self._more or _has_more(endpoint)

    def _read(self, endpoint: SocketEndpoint) -> bool:
        """Read, and say whether there was something to read.

        Raises:
            Http2Error: the client broke TLS.
        """
        data = endpoint.read()
        if data:
            self._http2.feed(data)
        return bool(data)

    # --- sds.transport.link.Link ----------------------------------------------------------------

    def send(self, stream: int, message: bytes) -> bool:
        endpoint = self._endpoint
        if endpoint is not None and endpoint.held:  # it waits behind what is not read
            self.owner.check_room(len(message), self._loop.time())
        if self._http2.send_now(stream, message):
            self._flush()
            if endpoint is None or not endpoint.held:
                return True
        else:
            self.owner.check_room(len(message), self._loop.time())
            self._http2.send_message(stream, message)
            self._flush()
        self.settle()
        if self._held > _UNNOTICED_BYTES:
            self.owner.check_room(0, self._loop.time())
        return not self.blocked(stream)

    def blocked(self, stream: int) -> bool:
        if self._endpoint is not None and self._endpoint.unsent > _HIGH_WATER:
            self._writers.add(stream)
            return True
        return self._http2.waits(stream)

    def finish(self, stream: int, status: int, message: str) -> None:
        self._calls.finished(stream)
        self._http2.finish(stream, status=status, message=message)
        if status in REFUSALS:
            self.refused()
        self._flush()
        self.settle()

    def refused(self) -> None:
        """Count a refused call; too many end the connection."""
        try:
            self.owner.refused(self._loop.time())
        except LimitError as error:
            self._end(ErrorCode.ENHANCE_YOUR_CALM, str(error))

    def cut(self, stream: int) -> None:
        endpoint = self._endpoint
        if endpoint is not None and endpoint.unsent:
            self.abort()  # nothing that we say can reach the client
            return
        self._calls.finished(stream)
        self._http2.cancel(stream)
        self._flush()
        self.settle()

    def client_left(self) -> bool:
        return self._endpoint is None or self._endpoint.client_left()

    def taken(self, stream: int, count: int) -> None:
        self._http2.take(stream, count)
        if not self._working:  # a handler began to read; a job would write at its end
            self._flush()

    def hold(self, count: int) -> None:
        self._requests += count
        # What moved here from the reader counts twice until the job is over.
        self._use(streams=0, held=count)
        if count > 0:
            if self._requests > self._server.limits.held_bytes:
                raise LimitError(
                    f"{self._requests} bytes of requests wait on this connection",
                    advice="send fewer requests at once",
                )
            self.owner.check_room(0, self._loop.time())

    def wake(self, future: asyncio.Future[None]) -> None:
        self._turns.wake(self.owner, self, future)

    async def turn(self) -> None:
        future = self._loop.create_future()
        self._turns.later(self.owner, self, future)
        await future

    def soon(self, job: Callable[[], bool]) -> None:
        self._turns.queue(self.owner, self, job)

    # --- output that nobody takes ---------------------------------------------------------------

    def unsent(self) -> Unsent | None:
        """Return what was not given to the kernel yet; None if all of it was."""
        endpoint = self._endpoint
        streams = self._http2.waiting()
        if endpoint is None or not (streams or endpoint.unsent):
            return None
        return Unsent(endpoint.written, streams)

    def is_unsent(self, before: Unsent) -> bool:
        """Say whether any of what was unsent then still is."""
        endpoint = self._endpoint
        if endpoint is None:
            return False
        if endpoint.unsent and endpoint.written - endpoint.unsent < before.end:
            return True
        waiting = self._http2.waiting()
        return any(waiting.get(number) == drained for number, drained in before.streams.items())

    # --- inside ---------------------------------------------------------------------------------

    def _flush(self) -> None:
        output = self._http2.take_output()
        if output and self._endpoint is not None:
            self._endpoint.write(output)

    def settle(self) -> None:
        """Tell the owner what is in use now."""
        endpoint = self._endpoint
        streams = self._calls.ending()
        held = self._requests + self._beside
        if endpoint is not None:
            opened, kept = self._http2.in_use()
            streams += opened
            held += kept + endpoint.held
        held += STREAM_BYTES * streams
        if held != self._held or streams != self._streams:
            self._use(streams=streams - self._streams, held=held - self._held)

    def _use(self, *, streams: int, held: int) -> None:
        """So much more (or less) is in use; the owner is told at once."""
        self._streams += streams
        self._held += held
        if streams < 0:
            self._idle_since = self._loop.time()
        self.owner.change(streams=streams, held=held)


def _has_more(endpoint: SocketEndpoint) -> bool:
    """Say whether the endpoint can be read at once; if not, it tells when it can."""
    if endpoint.pending:
        return True
    endpoint.resume_reading()
    return False
