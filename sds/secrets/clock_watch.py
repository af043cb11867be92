"""A tick every second, which also notices that somebody set a clock.

Owns the tick. Invariant: a wall clock that was stepped, and a guest that was suspended, are noticed
within about a second, and are told apart from time that passed.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.clock import Clock, Instant

_LOGGER = logging.getLogger("sds.secrets.rotation")
TICK_SECONDS: Final = 1.0
_STEP_SECONDS: Final = 0.5


def steps(before: Instant, now: Instant) -> tuple[float, float]:
    """Return how far the wall clock was stepped, and how long the guest was suspended, in seconds.

    Both lie between two readings. The first number contains the second, because a suspension moves
    the wall clock too.
    """
    passed = now.monotonic - before.monotonic
    stepped = (now.wall - before.wall).total_seconds() - passed
    suspended = now.boottime - before.boottime - passed
    return stepped, suspended


async def watch_clock(
    clock: Clock, *, tick: Callable[[Instant], None], on_step: Callable[[], None]
) -> None:
    """Call ``tick`` every second, and ``on_step`` when a clock moved by itself; until cancelled."""
    before = clock.now()
    while True:
        await clock.sleep(TICK_SECONDS)
        now = clock.now()
        tick(now)
        stepped, suspended = steps(before, now)
        if abs(stepped) > _STEP_SECONDS or suspended > _STEP_SECONDS:
            _LOGGER.warning(
                "the wall clock moved by %.1f s, of which %.1f s were a suspension",
                stepped,
                suspended,
                extra={"stepped_seconds": stepped, "suspended_seconds": suspended},
            )
            on_step()
        before = now
