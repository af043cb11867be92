"""Accepts connections on one listening socket.

Owns the socket. Invariants: it takes at most :data:`_ACCEPTS_AT_ONCE` connections in one turn of
the loop, and the time for all sockets together is bounded (:mod:`sds.transport.turns`); a fault
with one connection ends that one; if the process has no descriptors left, callers stay in the queue
for a moment, and the log says so.
"""

from __future__ import annotations

import errno
import functools
import logging
import socket
import struct
from typing import TYPE_CHECKING, Final

from sds.faults import report
from sds.subordinate_ids import owner_of_user
from sds.transport import frames
from sds.transport.connected_socket import hung_up
from sds.transport.frames import ErrorCode
from sds.transport.turns import Turns

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

_LOG: Final = logging.getLogger("sds.transport")
_ACCEPTS_AT_ONCE: Final = 32
_PAUSE_SECONDS: Final = 0.25
_SAID_SECONDS: Final = 10.0
_CREDENTIALS: Final = struct.Struct("iII")
"""``struct ucred``: pid, uid, gid (unix(7))."""


class Acceptor:
    """Accepts on one listening socket.

    Args:
        listener: a bound and listening socket, which this object owns from now on.
        loop: the event loop that watches it.
        take: gets each connection, and owns it.
        gone: says whether a client has already gone, so that nobody takes its connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[socket.socket], None],
        *,
        gone: Callable[[socket.socket], bool] = hung_up,
    ) -> None:
        listener.setblocking(False)  # noqa: FBT003  the socket's own method
        self._listener = listener
        self._loop = loop
        self._turns = Turns.of(loop)
        self._take = take
        self._gone = gone
        self._pausing: asyncio.TimerHandle | None = None
        self._said_at = float("-inf")
        self._pauses = 0
        loop.add_reader(listener.fileno(), self._accept_some)

    def close(self) -> None:
        """Accept no new connection; a second call does nothing."""
        if self._listener.fileno() == -1:
            return
        if self._pausing is not None:
            self._pausing.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    def _accept_some(self) -> None:
        try:
            accept_some(
                self._listener,
                self._turns,
                self._take_one,
                most=_ACCEPTS_AT_ONCE,
                gone=self._gone,
            )
        except OSError as error:
            self._pause(error)

    def _take_one(self, accepted: socket.socket) -> None:
        try:
            self._take(accepted)
        except Exception as error:  # noqa: BLE001  the boundary between one client and the socket
            accepted.close()
            report("accept", error)

    def _pause(self, error: OSError) -> None:
        """Leave callers in the queue for a moment, instead of spinning."""
        self._loop.remove_reader(self._listener.fileno())
        self._pauses += 1
        now = self._loop.time()
        if now - self._said_at >= _SAID_SECONDS:
            _LOG.error(
                "cannot accept connections: they wait",
                extra={"why": error.strerror, "times": self._pauses},
            )
            self._said_at, self._pauses = now, 0
        self._pausing = self._loop.call_later(_PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        self._pausing = None
        try:
            self._loop.add_reader(self._listener.fileno(), self._accept_some)
        except OSError as error:
            self._pause(error)


def accept_some(
    listener: socket.socket,
    turns: Turns,
    take: Callable[[socket.socket], None],
    *,
    most: int,
    gone: Callable[[socket.socket], bool] = hung_up,
) -> bool:
    """Hand on connections that wait, as many as one turn of the loop has room for.

    Args:
        listener: where they wait; does not block.
        turns: know what all sockets together took of this turn; one connection is always taken.
        take: is given each connection, owns it, and raises nothing. It does not get those whose
            client is gone.
        most: connections.
        gone: says whether a client is gone.

    Returns:
        Whether more may be waiting.

    Raises:
        OSError: nothing can be accepted now: most of the time, the process is out of descriptors.
    """
    for count in range(most):
        if count and turns.accepts_no_more:
            break
        began = turns.now()
        try:
            accepted, _address = listener.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            if error.errno == errno.ECONNABORTED:
                continue
            raise
        if gone(accepted):
            accepted.close()
        else:
            take(accepted)
        turns.accepted(turns.now() - began)
    return True


def user_of(accepted: socket.socket) -> str:
    """Return the owner of a connection if nobody says it better: the user who connected.

    All subordinate IDs of one user are one owner (:mod:`sds.subordinate_ids`).
    """
    data = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return owner_of_user(uid)


def process_of(accepted: socket.socket) -> int:
    """Return the process that connected."""
    data = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid: int = _CREDENTIALS.unpack(data)[0]
    return pid


def turn_away(accepted: socket.socket, text: str) -> None:
    """Close a connection that is not served, and tell the client why.

    Only GOAWAY is sent, without SETTINGS before it, because SETTINGS make a client count as
    connected. Clients of gRPC's C core would then connect again at once, over and over, for as long
    as their calls may wait. Without SETTINGS the attempt has failed: calls end with UNAVAILABLE,
    and the next attempts are a second and more apart ("gRPC Connection Backoff Protocol").
    """
    try:
        accepted.setblocking(False)  # noqa: FBT003  the socket's own method
        accepted.send(_farewell(text))
    except OSError:
        pass  # the client does not listen
    finally:
        accepted.close()


@functools.lru_cache(maxsize=64)
def _farewell(text: str) -> bytes:
    """Make the farewell of a whole crowd once, because then it must cost little."""
    return frames.goaway(0, ErrorCode.ENHANCE_YOUR_CALM, text)
