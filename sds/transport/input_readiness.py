"""Tells which connected sockets of an event loop have input.

Owns one epoll for the sockets of all connections of a loop, which the loop watches as one
descriptor. Serving stops listening to a socket while a job waits to read from it, for nearly every
message. The loop's own way to stop and to start again takes eight calls of the kernel (libuv), and
8 of the 65 µs of a push. Here a socket is reported once, and to ask again takes one call
(``EPOLLONESHOT``, epoll(7)).

Invariants: each :meth:`InputReadiness.expect` reports a socket once; one turn of the loop reports
at most :data:`MOST_AT_ONCE` sockets; a fault with one socket is reported and ends nothing else;
while no socket is watched there is no epoll.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

from sds.faults import report
from sds.transport.one_per_loop import OnePerLoop

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

MOST_AT_ONCE: Final = 256
_INPUT_ONCE: Final = select.EPOLLIN | select.EPOLLONESHOT


class InputReadiness(OnePerLoop):
    """The sockets of one event loop; ``of`` gives them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._epoll: select.epoll | None = None
        self._tell: dict[int, Callable[[], None]] = {}

    def expect(self, descriptor: int, tell: Callable[[], None]) -> None:
        """Call ``tell`` once, in a later turn, when the socket has input or has come to its end.

        Raises:
            OSError: the kernel cannot watch it.
        """
        epoll = self._epoll
        if descriptor in self._tell and epoll is not None:
            epoll.modify(descriptor, _INPUT_ONCE)
            return
        if epoll is None:
            epoll = select.epoll()
            try:
                self._loop.add_reader(epoll.fileno(), self._look)
            except BaseException:
                epoll.close()  # else nobody would look at it, nor make another one
                raise
            self._epoll = epoll
        try:
            epoll.register(descriptor, _INPUT_ONCE)
            self._tell[descriptor] = tell
        finally:
            self._close_if_unused()

    def forget(self, descriptor: int) -> None:
        """Watch a socket no longer; call this before it is closed."""
        epoll = self._epoll
        if self._tell.pop(descriptor, None) is None or epoll is None:
            return
        epoll.unregister(descriptor)
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        epoll = self._epoll
        if epoll is not None and not self._tell:
            self._epoll = None
            self._loop.remove_reader(epoll.fileno())
            epoll.close()

    def _look(self) -> None:
        if self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0, MOST_AT_ONCE):
            tell = self._tell.get(descriptor)
            if tell is not None:  # else the one before closed it
                try:
                    tell()
                except Exception as error:  # noqa: BLE001  the boundary between two connections
                    report("connection", error)
