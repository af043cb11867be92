"""Runs Python's full garbage collections in quiet moments, not when clients cause them.

A full collection takes longer the more objects are alive (60 ms beside 2,000 streams). The
interpreter starts one when enough objects were made since the last, so clients could choose that
moment again and again. Owns those moments. Invariants: young objects are collected as always; a
full collection runs when few streams are open, and at the latest after :data:`LONGEST_SECONDS`.
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
    """Stop the interpreter from starting full collections by itself."""
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)


async def collect_when_quiet(streams: Callable[[], int], clock: Clock) -> None:
    """Run full collections in quiet moments, until cancelled."""
    last = clock.now().monotonic
    while True:
        await clock.sleep(PAUSE_SECONDS)
        now = clock.now().monotonic
        if streams() < QUIET_STREAMS or now - last >= LONGEST_SECONDS:
            last = now
            gc.collect()
