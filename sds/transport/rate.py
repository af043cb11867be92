"""How often something may happen: a token bucket.

Invariant: it reads no clock; time comes in as seconds of a monotonic one.
"""

from __future__ import annotations

from sds.errors import LimitError


class TokenBucket:
    """Events per second, with a burst.

    Args:
        per_second: in the long run.
        burst: at once.
        what: the events, and ``advice`` what to do about too many of them, for the error.
    """

    __slots__ = ("_advice", "_full_at", "_interval", "_what", "_window")

    def __init__(
        self, *, per_second: float, burst: int, what: str = "frames a second", advice: str = ""
    ) -> None:
        """A full bucket."""
        self._interval = 1.0 / per_second
        self._window = burst * self._interval
        self._full_at = float("-inf")
        self._what = what
        self._advice = advice

    def take(self, now: float) -> None:
        """Take one token.

        Raises:
            LimitError: none is left.
        """
        full_at = max(self._full_at, now) + self._interval
        if full_at - now > self._window:
            raise LimitError(f"more than {1 / self._interval:g} {self._what}", advice=self._advice)
        self._full_at = full_at
