"""Time: the only module that reads a clock or sleeps.

Invariant: everything else gets an :class:`Instant` as an argument (``now``) or a
:class:`Clock` as a port, so that every decision about time can be tested without waiting.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


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
    """Seconds of a clock that only measures how long something took; it decides nothing."""
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
