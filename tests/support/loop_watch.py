"""How long the event loop is held between two of its turns, in processor time of its thread."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class LoopWatch:
    """Comes round once in each turn of the running loop.

    Attributes:
        held: the longest processor time between two turns, in seconds.
        turns: how many there were.
    """

    def __init__(self) -> None:
        self.held = 0.0
        self.turns = 0
        self._last = 0.0
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.Handle | None = None

    def start(self) -> None:
        self._last = time.thread_time()
        self._handle = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _turn(self) -> None:
        now = time.thread_time()
        self.held = max(self.held, now - self._last)
        self.turns += 1
        # Sleeping takes no processor time: the loop is free to wait.
        self._handle = self._loop.call_later(0, self._again)

    def _again(self) -> None:
        self._last = time.thread_time()
        self._handle = self._loop.call_soon(self._turn)


@contextlib.contextmanager
def loop_watch() -> Iterator[LoopWatch]:
    """Watch the running loop while the block runs."""
    watch = LoopWatch()
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()
