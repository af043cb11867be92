"""Limits of rates: buckets that fill with time.

Invariant: nothing here reads a clock; the caller passes seconds of a monotonic clock.
"""

from __future__ import annotations

from sds.errors import LimitError


class Allowance:
    """Allows an amount per second with a burst; it may be overdrawn, and then recovers with time.

    Args:
        per_second: in the long run.
        burst: at once.
    """

    __slots__ = ("_full_at", "_seconds_each", "_window")

    def __init__(self, per_second: float, burst: float) -> None:
        self._seconds_each = 1.0 / per_second
        self._window = burst / per_second
        self._full_at = float("-inf")

    def use(self, amount: float, now: float) -> None:
        """Use an amount, even if it is not available."""
        seconds = amount * self._seconds_each
        if now < self._full_at:
            self._full_at += seconds
        else:
            self._full_at = now + seconds

    def rest_seconds(self, now: float) -> float:
        """Return the seconds until it is no longer overdrawn; 0 if it is not."""
        rest = self._full_at - now - self._window
        return max(0.0, rest)

    def is_full(self, now: float) -> bool:
        """Say whether no earlier use counts any more."""
        return self._full_at <= now


class TokenBucket:
    """Allows events per second with a burst.

    Args:
        per_second: in the long run.
        burst: at once.
        what: names the events in the error; ``advice`` says what to do about too many.
    """

    __slots__ = ("_advice", "_full_at", "_interval", "_what", "_window")

    def __init__(
        self, *, per_second: float, burst: int, what: str = "frames a second", advice: str = ""
    ) -> None:
        """Begin with a full bucket."""
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

    def give_back(self) -> None:
        """Give back the token that was taken last."""
        self._full_at -= self._interval
