"""An event loop whose clock jumps to the next timer when nothing is left to run.

Sleeps of a test take no time, and how busy the machine is changes no result. Only for what waits
for timers, not for sockets or threads.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class _Jumping(selectors.DefaultSelector):
    """Skips the wait for the next timer."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What is ready now; the wait counts as past."""
        if timeout is None:
            raise AssertionError("nothing is left that could wake the test")
        self.skipped += max(0.0, timeout)
        found: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        return found


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.skipped


def in_virtual_time(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    """Run the test on such a loop."""

    @functools.wraps(test)
    def run() -> None:
        with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
            runner.run(test())

    return run
