"""Bytes between two connected sockets, both ways, without looking at them.

Owns both sockets from the start on. Invariants: at most one chunk a direction waits in memory
(a slow reader stops the reading of its own direction only); the end of one direction is passed on
as a half-close; when both ended, or one socket broke, both are closed and ``on_close`` is called
exactly once. No tasks: everything runs in callbacks of the loop.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

CHUNK_BYTES: Final = 65536


@dataclass(slots=True, kw_only=True)
class _Direction:
    source: socket.socket
    sink: socket.socket
    waiting: bytes = b""
    ended: bool = False


class Splice:
    """Joins two sockets; see the module."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        one: socket.socket,
        other: socket.socket,
        *,
        on_close: Callable[[], None],
    ) -> None:
        """``one`` and ``other``: connected and non-blocking; they are closed by this object."""
        self._loop = loop
        self._sockets = (one, other)
        self._on_close = on_close
        self._directions = (
            _Direction(source=one, sink=other),
            _Direction(source=other, sink=one),
        )
        self._closed = False

    def start(self) -> None:
        """Begin to carry bytes."""
        for direction in self._directions:
            self._loop.add_reader(direction.source, self._readable, direction)

    def close(self) -> None:
        """Close both sockets now; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for each in self._sockets:
            self._loop.remove_reader(each)
            self._loop.remove_writer(each)
            each.close()
        self._on_close()

    def _readable(self, direction: _Direction) -> None:
        try:
            data = direction.source.recv(CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()
            return
        if not data:
            self._loop.remove_reader(direction.source)
            self._end(direction)
            return
        if (rest := self._send(direction, data)) is None:
            return
        if rest:
            direction.waiting = rest
            self._loop.remove_reader(direction.source)
            self._loop.add_writer(direction.sink, self._writable, direction)

    def _writable(self, direction: _Direction) -> None:
        if (rest := self._send(direction, direction.waiting)) is None:
            return
        direction.waiting = rest
        if not rest:
            self._loop.remove_writer(direction.sink)
            self._loop.add_reader(direction.source, self._readable, direction)

    def _send(self, direction: _Direction, data: bytes) -> bytes | None:
        """What could not be sent yet, or None where the socket broke and all is closed."""
        try:
            sent = direction.sink.send(data)
        except (BlockingIOError, InterruptedError):
            return data
        except OSError:
            self.close()
            return None
        return data[sent:]

    def _end(self, direction: _Direction) -> None:
        direction.ended = True
        with contextlib.suppress(OSError):  # the other side may be gone already
            direction.sink.shutdown(socket.SHUT_WR)
        if all(each.ended for each in self._directions):
            self.close()
