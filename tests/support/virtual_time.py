"""An event loop whose clock jumps to the next timer when nothing is left to run.

Sleeps of a test take no time, and how busy the machine is changes no result. Only for what waits
for timers, not for sockets or threads.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

_T = TypeVar("_T")


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


def run(test: Coroutine[None, None, _T]) -> _T:
    """Run the test on such a loop."""
    with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
        return runner.run(test)
