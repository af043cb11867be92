"""In which turns of the event loop something happens."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class TurnCounter:
    """Counts in which turns of the loop something happened.

    Attributes:
        seen: how often, by turn.
    """

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()
        self._turn = 0
        self._loop = asyncio.get_running_loop()
        self._next()

    def _next(self) -> None:
        self._turn += 1
        self._handle = self._loop.call_soon(self._next)

    def happened(self) -> None:
        """Something happened."""
        self.seen[self._turn] += 1

    def work(self) -> None:
        """Something happened, and took a millisecond."""
        self.happened()
        ends = time.perf_counter() + 0.001
        while time.perf_counter() < ends:
            pass

    @property
    def most(self) -> int:
        """How often it happened in the turn that had the most of it."""
        return max(self.seen.values(), default=0)

    def stop(self) -> None:
        self._handle.cancel()


@contextlib.asynccontextmanager
async def turns() -> AsyncIterator[TurnCounter]:
    counter = TurnCounter()
    try:
        yield counter
    finally:
        counter.stop()
