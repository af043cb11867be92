"""Spreads the callbacks of one event: a few of them in each turn of the event loop.

A process with a hundred connections exits, a secret changes that ten thousand streams wait for, a
change of pods wakes every recognition: each of these is one event with many callbacks. Owns
:class:`Trickle`. Invariants: callbacks are called in the order in which they were added, and a
bounded number in each turn of the loop; a callback that fails is reported and stops no other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from sds.faults import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Trickle:
    """Calls queued callbacks, a few in each turn of the event loop.

    Args:
        where: the place under which failures are reported, one of :data:`sds.faults.PLACES`.
        most: the most callbacks in one turn.
    """

    __slots__ = ("_call", "_handle", "_most", "_waiting")

    def __init__(self, where: str, most: int) -> None:
        self._most = most
        self._waiting: deque[Callable[[], object]] = deque()
        self._handle: asyncio.Handle | None = None
        self._call = guarded(where, _called)

    def add(self, callback: Callable[[], object]) -> None:
        """Queue a callback; it is not called now."""
        self._waiting.append(callback)
        self._expect()

    def add_all(self, callbacks: Iterable[Callable[[], object]]) -> None:
        """Queue these callbacks, in this order."""
        self._waiting.extend(callbacks)
        self._expect()

    def close(self) -> None:
        """Drop the queue and call nothing more."""
        self._waiting.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _expect(self) -> None:
        if self._handle is None and self._waiting:
            loop = asyncio.get_running_loop()
            self._handle = loop.call_soon(guarded("event loop", self._turn))

    def _turn(self) -> None:
        self._handle = None
        for _ in range(min(self._most, len(self._waiting))):
            self._call(self._waiting.popleft())
        self._expect()


def _called(callback: Callable[[], object]) -> None:
    callback()
