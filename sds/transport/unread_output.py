"""Output that the kernel took and no client has read: it is charged to our control group.

A Unix socket keeps up to 229 KB of it, and a client that reads nothing costs the client nothing:
1,200 such connections took 256 MiB, and the kernel killed the agent. It stays after we closed our
end, for as long as the client keeps its own. Owns how much it is. Invariants: what
:class:`UnreadOutput` reports of a socket is never much less than what the kernel has, and
:data:`LOOK_SECONDS` later it is no more; a connection that is over before its client has read
counts on until it has, if its owner is recognised and has room for it.

Sources: unix(7), SIOCOUTQ (``unix_outq_len``); Linux ``Documentation/admin-guide/cgroup-v2.rst``,
"sock".
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import termios
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from sds.errors import LimitError
from sds.faults import guarded
from sds.transport.one_per_loop import OnePerLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sds.transport.budget import Owner
    from sds.transport.connected_socket import ConnectedSocket

LOOK_SECONDS: Final = 1.0
NOTICED_BYTES: Final = 8 * 1024
"""Less than this is not counted, and is no reason to ask the kernel."""
SEND_BYTES: Final = 1024
"""The most that one call of the kernel takes beside its content."""
_STRANGERS_BYTES: Final = 4 * 1024
"""What the kernel is asked to keep for a stranger; it takes twice as much (socket(7))."""
_AT_ONCE: Final = 64
_NUMBER: Final = bytes(4)


class UnreadOutput(OnePerLoop):
    """The sockets of one event loop that have unread output; ``of`` gives it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._senders: dict[ConnectedSocket, None] = {}
        self._lingering: dict[int, Callable[[], None]] = {}
        """Descriptors of closed sockets, and what gives back what they count."""
        self._round: deque[ConnectedSocket | int] = deque()
        self._handle: asyncio.Handle | None = None
        weakref.finalize(self, _close_all, self._lingering)

    def watch(self, sender: ConnectedSocket) -> None:
        """Let the sender look again soon, until :meth:`forget`."""
        self._senders[sender] = None
        self._expect()

    def forget(self, sender: ConnectedSocket) -> None:
        """Let it look no more."""
        self._senders.pop(sender, None)

    def linger(self, closed: socket.socket, give_back: Callable[[], None]) -> None:
        """Keep a socket that is over until its client has read, or has gone."""
        with contextlib.suppress(OSError):  # the client may have gone meanwhile
            closed.shutdown(socket.SHUT_RDWR)
        self._lingering[closed.detach()] = give_back
        self._expect()

    def _expect(self) -> None:
        if self._handle is None and (self._senders or self._lingering):
            self._handle = self._loop.call_later(LOOK_SECONDS, guarded("connection", self._begin))

    def _begin(self) -> None:
        self._round.extend(self._senders)
        self._round.extend(self._lingering)
        self._look_at_some()

    def _look_at_some(self) -> None:
        """Look at a few; there may be thousands."""
        try:
            for _ in range(min(_AT_ONCE, len(self._round))):
                one = self._round.popleft()
                if isinstance(one, int):
                    self._release_if_read(one)
                elif one in self._senders:
                    one.look()
        finally:
            self._handle = None
            if self._round:
                self._handle = self._loop.call_soon(guarded("connection", self._look_at_some))
            else:
                self._expect()

    def _release_if_read(self, descriptor: int) -> None:
        if unread(descriptor) <= NOTICED_BYTES:
            give_back = self._lingering.pop(descriptor)
            os.close(descriptor)
            give_back()


def counted(owner: Owner, count: int, now: float) -> Callable[[], None] | None:
    """Count a connection that is over and what its client has not read; return what undoes that.

    None if the owner may have no more; it gets little that it could leave then. None for strangers
    too: they share one account, and what one of them leaves must keep no other out.
    """
    if not owner.recognised:
        return None
    try:
        owner.check_room(count, now)
    except LimitError:
        return None
    owner.change(streams=0, held=count)
    owner.count_connections(1)  # its descriptor is one of those that connections may have

    def give_back() -> None:
        owner.change(streams=0, held=-count)
        owner.disconnect(give_back)

    return give_back


def keep_little(connected: socket.socket) -> Callable[[], None]:
    """Let the kernel keep little unread output of a stranger's socket; return what ends that.

    What a stranger leaves unread counts for nobody (:func:`counted`), so it must not be much.
    """
    usual = connected.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _STRANGERS_BYTES)

    def keep_as_usual() -> None:
        with contextlib.suppress(OSError):  # it is closed
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, usual // 2)

    return keep_as_usual


def unread(descriptor: int) -> int:
    """Return how many bytes of memory the output of a socket takes that was not read yet."""
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, _NUMBER), sys.byteorder)
    except OSError:
        return 0


def _close_all(descriptors: dict[int, Callable[[], None]]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[0])
