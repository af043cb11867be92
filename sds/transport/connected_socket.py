"""One connected socket: it reads when asked to, and writes at once what the kernel takes.

Owns the descriptor and the output that the kernel has not taken. Invariants: it reads only when
asked to, so what a client sends too fast stays in the kernel; output is written in order and kept
only here, as the objects that were given; the descriptor is closed once, and the event loop does
not refer to it afterwards.
"""

from __future__ import annotations

import errno
import logging
import select
import socket
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from sds.transport.input_readiness import InputReadiness
from sds.transport.output_pieces import kept, rest_of
from sds.transport.unread_output import NOTICED_BYTES, SEND_BYTES, UnreadOutput, unread

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

_LOG: Final = logging.getLogger("sds.transport")
_PIECE_BYTES: Final = 352
"""Bytes of memory of a waiting piece of output beside its content: its object and a view."""
_NOTHING: Final = memoryview(b"")
_WRITE_BUFFERS: Final = 64
"""The most pieces of output for one call of the kernel, which takes up to 1,024 (IOV_MAX)."""


_ORDINARY: Final = frozenset(
    {errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ETIMEDOUT}
)
"""How a connection ends when its client, or the network between, has gone."""


def hung_up(connected: socket.socket) -> bool:
    """Say whether the client has already closed its end; then others are served first.

    Serving a connection costs ten times as much as this check, and a client that connects and
    leaves again and again fills the queue. A client that only ended its own sending still reads,
    and is served (unix(7) and poll(2): POLLHUP, not POLLRDHUP).
    """
    return _has(connected, 0)


def ended_sending(connected: socket.socket) -> bool:
    """Say whether the client of a TCP connection sends nothing more, or is gone (poll(2)).

    What it sent before may still be unread. Who calls by gRPC keeps its side open until it has its
    answers, so nobody waits for what such a client asked.
    """
    return _has(connected, select.POLLRDHUP)


def _has(connected: socket.socket, events: int) -> bool:
    """Say whether the kernel reports one of these events of poll(2), or POLLHUP or POLLERR."""
    poll = select.poll()
    poll.register(connected, events)  # POLLHUP and POLLERR are always reported
    return bool(poll.poll(0))


class SocketUser(Protocol):
    """What a socket tells the code that uses it."""

    def readable(self) -> None:
        """Read what is there, or the end; called once for each ``resume_reading``."""
        ...

    def drained(self) -> None:
        """Note that the kernel took all output, after some had to wait."""
        ...

    def recount(self) -> None:
        """Note that :attr:`ConnectedSocket.held` changed without a call of the user."""
        ...

    def left_unread(self, count: int) -> Callable[[], None] | None:
        """Count bytes that stay in the kernel after the end; return what gives them back.

        None if nothing more may be counted.
        """
        ...

    def lost(self) -> None:
        """Note that the connection is over; called once, in a later turn of the loop."""
        ...


class ConnectedSocket:
    """A connected socket on the event loop.

    Args:
        connected: the socket, which this object owns from now on.
        loop: the event loop that watches it.
        reader: the user of the socket; is told of input after :meth:`resume_reading`.
        buffer: takes what is read; sockets of one loop may share it.

    Attributes:
        backlog: bytes of memory of waiting output (the answer to a PING has 17 of its own); the
            user is told when all is taken.
        held: the same, with what the kernel took and the client has not read.
        unsent: bytes of output that the kernel has not taken.
        written: bytes of output that were given to this object since the beginning.
    """

    __slots__ = (
        "_buffer",
        "_closing",
        "_given",
        "_loop",
        "_output",
        "_reader",
        "_readiness",
        "_reading",
        "_socket",
        "_unread",
        "_unread_output",
        "_watched",
        "_writing",
        "backlog",
        "held",
        "unsent",
        "written",
    )

    def __init__(
        self,
        connected: socket.socket,
        loop: asyncio.AbstractEventLoop,
        reader: SocketUser,
        buffer: bytearray | memoryview,
    ) -> None:
        connected.setblocking(False)  # noqa: FBT003  the socket's own method
        self._socket: socket.socket | None = connected
        self._loop = loop
        self._reader = reader
        self._buffer = buffer
        self._output: deque[memoryview] | None = None
        self._readiness = InputReadiness.of(loop)
        self._reading = self._writing = self._closing = False
        """Whether the reader will be told, the kernel takes no output, the end has begun."""
        self._watched = False
        # On TCP, the network has output that was not read too, and callers are far away.
        unix = connected.family == socket.AF_UNIX
        self._unread_output = UnreadOutput.of(loop) if unix else None
        self._given = self._unread = 0
        """Bytes that the kernel took since it was asked, and what it said then if that is much."""
        self.backlog = self.held = 0
        self.unsent = 0
        self.written = 0

    def is_closed(self) -> bool:
        return self._socket is None or self._closing

    @property
    def pending(self) -> bool:
        """Return False: nothing that was read waits here."""
        return False

    def client_left(self) -> bool:
        return self._socket is None or ended_sending(self._socket)

    # --- reading --------------------------------------------------------------------------------

    def resume_reading(self) -> None:
        if not self._reading and self._socket is not None and not self._closing:
            self._reading = self._watched = True
            try:
                self._readiness.expect(self._socket.fileno(), self._readable)
            except OSError as error:
                self._fail(error)

    def pause_reading(self) -> None:
        """Tell the reader nothing until :meth:`resume_reading`."""
        self._reading = False

    def _readable(self) -> None:
        if self._reading:
            self._reading = False
            self._reader.readable()

    def read(self) -> memoryview:
        """Read what has arrived, at most the size of the buffer; return nothing if nothing has.

        The result is a view of the buffer, into which the next socket reads. At the end of the
        connection :meth:`SocketUser.lost` is called.
        """
        if self._socket is None:
            return _NOTHING
        try:
            count = self._socket.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return _NOTHING
        except OSError as error:
            self._fail(error)
            return _NOTHING
        if not count:
            self.abort()
        return memoryview(self._buffer)[:count]

    # --- writing --------------------------------------------------------------------------------

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        if self._socket is None:
            return
        size = 0
        for piece in pieces:
            size += len(piece)
        self.written += size
        if self._output is None and len(pieces) <= _WRITE_BUFFERS:
            try:
                sent = self._socket.sendmsg(pieces)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._fail(error)
                return
            if sent:
                self._gave(sent)
            if sent == size:  # nearly always: most connections never have to keep output
                return
            self.unsent = size
            self._output = deque(memoryview(piece) for piece in pieces)
            self._drop(sent)
        else:
            self.unsent += size
            if self._output is None:
                self._output = deque()
            self._output.extend(memoryview(piece) for piece in pieces)
            self._count_held()
        if not self._writing:
            self._send()

    def _drop(self, count: int) -> None:
        """Drop bytes of the output that the kernel took."""
        output = self._output
        self.unsent -= count
        while output and count >= len(output[0]):
            count -= len(output.popleft())
        if output and count:
            output[0] = rest_of(output[0], count)
        self._count_held()

    def _count_held(self) -> None:
        output = self._output or ()
        self.backlog = self.unsent + _PIECE_BYTES * len(output)
        if output:  # only the first may be a part
            self.backlog += kept(output[0]) - len(output[0])
        self.held = self.backlog + self._unread

    def _send(self) -> None:
        """Give the kernel as much output as it takes."""
        output = self._output
        if output is None:
            return
        while output and self._socket is not None:
            some = [output[at] for at in range(min(len(output), _WRITE_BUFFERS))]
            try:
                count = self._socket.sendmsg(some)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self._fail(error)
                return
            self._drop(count)
            self._gave(count)
        if self._socket is None:
            return
        if not output:
            self._output = None
            self._all_sent()
        elif not self._writing:
            try:
                self._loop.add_writer(self._socket.fileno(), self._send)
            except OSError as error:
                self._fail(error)
            else:
                self._writing = True

    def _all_sent(self) -> None:
        if self._writing and self._socket is not None:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())
            if not self._closing:
                self._reader.drained()
        if self._closing:
            self.abort()

    # --- output that nobody reads ---------------------------------------------------------------

    def _gave(self, count: int) -> None:
        """Note that the kernel took bytes; ask it, once they are many, how many nobody has read."""
        self._given += count + SEND_BYTES
        if self._given > NOTICED_BYTES and self._unread_output is not None:
            self.look()

    def look(self) -> None:
        """Ask the kernel how much output nobody has read."""
        watching = self._unread_output
        if self._socket is None or watching is None:
            return
        found = unread(self._socket.fileno())
        self._given = 0
        before, self._unread = self._unread, found if found > NOTICED_BYTES else 0
        if self._unread:
            watching.watch(self)
        elif before:
            watching.forget(self)
        if self._unread != before:
            self.held = self.backlog + self._unread
            self._reader.recount()

    def _let_go(self, connected: socket.socket) -> None:
        """Close the socket; if its client has much to read, once that is read."""
        watching = self._unread_output
        if watching is not None:
            watching.forget(self)
            left = unread(connected.fileno())
            if left > NOTICED_BYTES:
                give_back = self._reader.left_unread(left)
                if give_back is not None:
                    watching.linger(connected, give_back)
                    return
        connected.close()

    # --- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Read no more, and close once the output is taken; the caller limits the time."""
        if self.is_closed():
            return
        self.pause_reading()
        self._closing = True
        if not self._output:
            self.abort()

    def abort(self) -> None:
        connected, self._socket = self._socket, None
        if connected is None:
            return
        self._reading = False
        if self._watched:
            self._readiness.forget(connected.fileno())
        if self._writing:
            self._loop.remove_writer(connected.fileno())
        self._output = None
        self.backlog = self.held = self.unsent = self._unread = 0
        self._let_go(connected)
        self._loop.call_soon(self._reader.lost)

    def _fail(self, error: OSError) -> None:
        if not isinstance(error, ConnectionError) and error.errno not in _ORDINARY:
            _LOG.warning("a connection failed", extra={"why": error.strerror})
        self.abort()
