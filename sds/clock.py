"""Time: the only module that reads a clock or sleeps.

Invariant: everything else gets an :class:`Instant` as an argument (``now``) or a
:class:`Clock` as a port, so that every decision about time can be tested without waiting.
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
        monotonic: seconds of CLOCK_MONOTONIC: never goes back, stands still while suspended.
        boottime: seconds of CLOCK_BOOTTIME: as monotonic, but counts suspension too.
    """

    wall: datetime
    monotonic: float
    boottime: float


def stopwatch() -> float:
    """Read a clock that only measures how long something took, in seconds; it decides nothing."""
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
    """The machine's clocks."""

    def now(self) -> Instant:
        """Read all clocks."""
        return Instant(
            wall=datetime.now(UTC),
            monotonic=time.monotonic(),
            boottime=time.clock_gettime(time.CLOCK_BOOTTIME),
        )

    async def sleep(self, seconds: float) -> None:
        """Wait that many seconds of monotonic time."""
        await asyncio.sleep(max(0.0, seconds))


async def sleep_while(
    clock: Clock, left: Callable[[Instant], float], *, look_seconds: float = LOOK_SECONDS
) -> None:
    """Wait until nothing is left; a clock that is set and a suspension count.

    A sleep measures monotonic time, which stands still while a guest is suspended and knows nothing
    of the wall clock. Whatever waits for minutes or more asks the clocks again meanwhile.

    Args:
        clock: time.
        left: seconds that are left at that moment, by the clock that it chooses; 0 or less: done.
        look_seconds: the longest sleep between two looks at the clocks.
    """
    while (seconds := left(clock.now())) > 0:
        await clock.sleep(min(seconds, look_seconds))


async def sleep_boottime(
    clock: Clock, seconds: float, *, look_seconds: float = LOOK_SECONDS
) -> None:
    """Wait that many seconds of boot time: time in which the machine is suspended counts."""
    until = clock.now().boottime + seconds
    await sleep_while(clock, lambda now: until - now.boottime, look_seconds=look_seconds)
