"""Reads the clocks and sleeps; no other module does.

Invariant: all other code gets an :class:`Instant` as an argument (``now``) or a :class:`Clock` as a
port, so that every decision about time can be tested without waiting.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_SECONDS: Final = 30.0
"""How late :func:`sleep_while` notices that a clock moved by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant:
    """One reading of all clocks, taken together.

    Attributes:
        wall: the wall clock, aware, in UTC. It can be stepped in both directions.
        monotonic: seconds of CLOCK_MONOTONIC, which never goes back and stops during suspension.
        boottime: seconds of CLOCK_BOOTTIME, which is like monotonic but counts suspension too. It
            stands still while a hypervisor pauses the whole guest; then only the wall clock is set.
    """

    wall: datetime
    monotonic: float
    boottime: float


def elapsed(since: Instant, now: Instant) -> float:
    """Return the seconds between two readings, by the clock that shows more: wall or boot time."""
    return max((now.wall - since.wall).total_seconds(), now.boottime - since.boottime)


def stopwatch() -> float:
    """Read a clock, in seconds, only to measure how long something took, never to decide."""
    return time.perf_counter()


class Clock(Protocol):
    """The port through which the edges read time and wait."""

    def now(self) -> Instant:
        """Read all clocks."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that many seconds of monotonic time (0 or less yields once)."""
        ...


class SystemClock:
    """Reads the machine's clocks."""

    def now(self) -> Instant:
        return Instant(
            wall=datetime.now(UTC),
            monotonic=time.monotonic(),
            boottime=time.clock_gettime(time.CLOCK_BOOTTIME),
        )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


async def sleep_while(
    clock: Clock, left: Callable[[Instant], float], *, look_seconds: float = LOOK_SECONDS
) -> None:
    """Wait until no time is left, even if a clock is set or the machine is suspended meanwhile.

    A sleep measures monotonic time, which stops while a guest is suspended and does not follow the
    wall clock. A wait of minutes or more must therefore read the clocks again meanwhile.

    Args:
        clock: gives the time.
        left: returns the seconds that are left at that moment, by a clock of its choice; 0 or less
            ends the wait.
        look_seconds: the longest sleep between two readings of the clocks.
    """
    while (seconds := left(clock.now())) > 0:
        await clock.sleep(min(seconds, look_seconds))


async def sleep_elapsed(
    clock: Clock, seconds: float, *, look_seconds: float = LOOK_SECONDS
) -> None:
    """Wait that many seconds (:func:`elapsed`), also if the machine is suspended or paused."""
    since = clock.now()
    await sleep_while(clock, lambda now: seconds - elapsed(since, now), look_seconds=look_seconds)
