"""The time that open calls have to end once the agent drains.

Owns :class:`DrainTime`. Invariants: all servers of an agent share one time, which begins with the
first server that stops, so that clients of several sockets cannot add theirs up; once the end was
demanded at once (the task was cancelled: a second signal), none is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.supervision import is_cancelled

if TYPE_CHECKING:
    from sds.clock import Clock

DRAIN_SECONDS: Final = 5.0


class DrainTime:
    """Counts down once.

    Args:
        seconds: how long open calls have to end, on all sockets together.
        clock: gives the time.
    """

    def __init__(self, seconds: float, *, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until: float | None = None

    def left(self) -> float:
        """Return the seconds that are left; the first call begins the time."""
        now = self._clock.now().monotonic
        if self._until is None:
            self._until = now + self._seconds
        return 0.0 if is_cancelled() else max(0.0, self._until - now)
