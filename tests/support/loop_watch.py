"""How long a turn of the event loop lasts, from one wait to the next, in processor time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


class LoopWatch:
    """Looks at the clock whenever the running loop begins and ends to wait.

    It adds no turn of its own: a watch that comes round in each turn would keep the loop from
    waiting, and take as much processor time as what it watches.

    Attributes:
        held: the longest processor time of a turn, in seconds.
        turns: how many there were.
    """

    def __init__(self) -> None:
        self.held = 0.0
        self.turns = 0
        loop: Any = asyncio.get_running_loop()
        self._selector = loop._selector
        self._select = self._selector.select
        self._began = 0.0

    def start(self) -> None:
        self._began = time.thread_time()
        self._selector.select = self._wait

    def stop(self) -> None:
        self._selector.select = self._select

    def _wait(self, timeout: float | None = None) -> Any:
        self.held = max(self.held, time.thread_time() - self._began)
        self.turns += 1
        try:
            return self._select(timeout)
        finally:
            self._began = time.thread_time()


@contextlib.contextmanager
def loop_watch() -> Iterator[LoopWatch]:
    """Watch the running loop while the block runs."""
    watch = LoopWatch()
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
