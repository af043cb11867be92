"""A clock that tests move: nothing waits for real time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import timedelta
from typing import TYPE_CHECKING

from sds.clock import Instant, SystemClock
from tests.support.certificates import NOW

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

_TURNS = 60
_SHORTEST = 1e-5


class FakeClock:
    """All three clocks at :data:`NOW`; see :class:`sds.clock.Clock`."""

    def __init__(self) -> None:
        self.wall: datetime = NOW
        self.monotonic = 1000.0
        self.boottime = 5000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = itertools.count()
        self.sleeps = 0
        """How often anybody began to wait."""

    def now(self) -> Instant:
        return Instant(wall=self.wall, monotonic=self.monotonic, boottime=self.boottime)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        self.sleeps += 1
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # A real clock moves while one sleeps, however short that is.
        until = self.monotonic + max(seconds, _SHORTEST)
        heapq.heappush(self._sleepers, (until, next(self._count), future))
        await future

    def step(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.wall += timedelta(seconds=seconds)

    def suspend(self, seconds: float) -> None:
        """The guest sleeps: monotonic time stands still."""
        self.step(seconds)
        self.boottime += seconds

    async def advance(self, seconds: float) -> None:
        """Let time pass, and everybody who waited act at the right moment."""
        end = self.monotonic + seconds
        await self.settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            self._pass(self._sleepers[0][0] - self.monotonic)
            while self._sleepers and self._sleepers[0][0] <= self.monotonic:
                future = heapq.heappop(self._sleepers)[2]
                if not future.done():
                    future.set_result(None)
            await self.settle()
        self._pass(end - self.monotonic)

    async def until(self, holds: Callable[[], bool], *, seconds: float = 3600.0) -> None:
        """Let time pass until ``holds()``; fails after that many seconds of this clock."""
        end = self.monotonic + seconds
        await self.settle()
        while not holds():
            self._sleepers = [entry for entry in self._sleepers if not entry[2].done()]
            heapq.heapify(self._sleepers)
            if not self._sleepers or self._sleepers[0][0] > end:
                message = f"it did not come true within {seconds} s"
                raise AssertionError(message)
            await self.advance(self._sleepers[0][0] - self.monotonic)

    async def settle(self) -> None:
        """Let every task run until it waits."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    def _pass(self, seconds: float) -> None:
        self.monotonic += seconds
        self.boottime += seconds
        self.step(seconds)


class PauseCounter(SystemClock):
    """Counts pauses instead of making them."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


class PatientClock(FakeClock):
    """Time that passes when somebody sleeps."""

    def __init__(self, wall: datetime | None = None) -> None:
        super().__init__()
        if wall is not None:
            self.wall = wall
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._pass(seconds)
