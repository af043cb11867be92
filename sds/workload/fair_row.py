"""Gives one worker to pieces of work of very different size in a fair order.

Each owner may be new (a user with subordinate IDs has 65,536 of them), so an order among owners
does not help against many that each bring much work. Owns :class:`FairRow`. Invariants: the piece
that has waited longest and the smallest piece get turns alternately, so a small piece waits for
little more than two others, and a large one does not wait forever; one piece has the turn at a
time; the row takes memory for those that wait, and not for those that had their turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_FEW: Final = 16


class FairRow:
    """Gives turns to pieces of work."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self._by_size: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._oldest_next = False

    @contextlib.asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait for the turn of an owner with this much work, and keep it while the block runs."""
        if self._busy:
            await self._wait(size)
        self._busy = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, size: int) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        heapq.heappush(self._by_size, (size, next(self._numbers), future))
        try:
            await future
        except asyncio.CancelledError:
            self._waiting.pop(future, None)
            if future.done() and not future.cancelled():  # it already had its turn
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next piece of work."""
        self._busy = False
        self._oldest_next = not self._oldest_next
        while (chosen := self._next()) is not None:
            if not chosen.done():
                self._busy = True
                chosen.set_result(None)
                return

    def _next(self) -> asyncio.Future[None] | None:
        while self._by_size and self._by_size[0][2] not in self._waiting:
            heapq.heappop(self._by_size)
        if not self._waiting:
            return None
        chosen = next(iter(self._waiting)) if self._oldest_next else self._by_size[0][2]
        del self._waiting[chosen]
        if len(self._by_size) > 2 * len(self._waiting) + _FEW:
            # Large ones that had their turn as the oldest lie below small ones that always come.
            self._by_size = [each for each in self._by_size if each[2] in self._waiting]
            heapq.heapify(self._by_size)
        return chosen
