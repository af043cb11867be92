"""When Python's garbage collector looks at everything: in quiet moments, not when clients decide.

A full collection takes the longer the more lives (60 ms beside 2,000 streams), and the interpreter
starts one when enough was made since the last: clients could choose that moment again and again.
Owns those moments. Invariants: young objects are collected as always; everything is looked at when
few streams are open, and at the latest after :data:`LONGEST_SECONDS`.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.clock import Clock

PAUSE_SECONDS: Final = 30.0
LONGEST_SECONDS: Final = 600.0
QUIET_STREAMS: Final = 200
_NEVER: Final = 1_000_000_000


def only_when_told() -> None:
    """The interpreter does not look at everything by itself any more."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)


async def collect_when_quiet(streams: Callable[[], int], clock: Clock) -> None:
    """Look at everything in quiet moments, until cancelled.

    Args:
        streams: how many are open now.
        clock: time.
    """
    last = clock.now().monotonic
    while True:
        await clock.sleep(PAUSE_SECONDS)
        now = clock.now().monotonic
        if streams() < QUIET_STREAMS or now - last >= LONGEST_SECONDS:
            last = now
            gc.collect()
