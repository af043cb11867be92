"""Gives memory back to the system once a crowd of clients has been served.

A first request of Envoy 1.40 has 61 KB; when a node starts, hundreds arrive at once, and glibc
keeps the pages that contained them. Owns the moment at which they go back: when no stream has been
opened for a while. Invariants: at most one timer runs, and only after a crowd; however often crowds
come, memory goes back at most once in :data:`REST_SECONDS`, because the event loop waits for that
(36 ms with a heap of 118 MB).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.secrets.heap_trim import give_back

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

CROWD: Final = 32
"""How many streams, opened one soon after the other, count as a crowd."""
QUIET_SECONDS: Final = 1.0
REST_SECONDS: Final = 10.0
"""How long nothing is given back after the last time."""


class CrowdTrimmer:
    """Calls ``give_back`` when a crowd of new streams is followed by quiet."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, give_back: Callable[[], None] = give_back
    ) -> None:
        self._loop = loop
        self._give_back = give_back
        self._opened = 0
        self._seen = 0
        self._timer: asyncio.TimerHandle | None = None

    def opened(self) -> None:
        """Note that a stream was opened."""
        self._opened += 1
        if self._timer is None and self._opened >= CROWD:
            self._wait()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._opened != self._seen:
            self._wait()
            return
        self._opened = 0
        self._timer = self._loop.call_later(REST_SECONDS, self._rested)
        self._give_back()

    def _rested(self) -> None:
        self._timer = None
        if self._opened >= CROWD:
            self._wait()

    def _wait(self) -> None:
        self._seen = self._opened
        self._timer = self._loop.call_later(QUIET_SECONDS, self._look)
