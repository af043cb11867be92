"""Many callbacks that one event causes: a few of them in each turn of the event loop.

A process exits with a hundred connections, a secret changes that ten thousand streams wait for, a
change of pods wakes every recognition: each of these is one event. Owns :class:`Trickle`.
Invariants: callbacks are called in the order in which they came, at most so many between two turns
of the loop; one that fails is reported and keeps no other from its turn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from sds.faults import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Trickle:
    """See the module.

    Args:
        where: the place that reports what fails, one of :data:`sds.faults.PLACES`.
        most: callbacks in one turn.
    """

    __slots__ = ("_call", "_handle", "_most", "_waiting")

    def __init__(self, where: str, most: int) -> None:
        """Nothing waits."""
        self._most = most
        self._waiting: deque[Callable[[], object]] = deque()
        self._handle: asyncio.Handle | None = None
        self._call = guarded(where, _called)

    def add(self, callback: Callable[[], object]) -> None:
        """Call this when it is its turn: not now."""
        self._waiting.append(callback)
        self._expect()

    def add_all(self, callbacks: Iterable[Callable[[], object]]) -> None:
        """Call each of these, in this order."""
        self._waiting.extend(callbacks)
        self._expect()

    def close(self) -> None:
        """Call nothing more."""
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
