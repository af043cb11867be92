"""Decides when to try again: the only retry policy of this program.

Owns the length of every pause between a failed attempt and the next one, and the reading of
``Retry-After``. Invariants: a pause is never longer than ``longest``, nor than ``first`` and all
earlier pauses together (so a short outage is over soon after it ends); it is never shorter than
half of its nominal length (so the load on an authority is bounded); a success, and a change that
may cure the failure, start again at ``first``.

The decision is a pure function of :class:`Backoff`. :class:`Retry` counts failures and waits, for
a task that tries one thing again and again::

    retry = Retry(clock, QUICK)
    while True:
        try:
            await attempt()
        except SdsError as error:
            await retry.pause(helps=error.retriable)
        else:
            retry.succeeded()

Jitter follows "equal jitter" of the AWS Architecture Blog, "Exponential Backoff And Jitter".
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sds.clock import Clock

LATER: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""The answers of an HTTP server that may say in ``Retry-After`` when to ask again."""
LONGEST_LATER: Final = 4 * 3600.0
"""The most seconds that a ``Retry-After`` counts for: nobody may silence a client for good."""

_MOST_DOUBLINGS: Final = 32
uniform: Final = random.Random().random  # noqa: S311  jitter is not a secret
"""Draws jitter in [0, 1). The system seeds it, so no two processes draw alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """The bounds of the pauses between attempts at one thing.

    Attributes:
        first: the nominal pause after the first failure, in seconds; each further failure doubles
            it.
        longest: the longest pause, in seconds.
    """

    first: float
    longest: float

    def seconds(self, failures: int, *, draw: float) -> float:
        """Return the seconds between the last failure and the next attempt.

        Args:
            failures: how many failures in a row, including the last one: 1 or more.
            draw: jitter in [0, 1). Things that failed together share one draw, and so try again
                together.
        """
        doublings = min(max(failures - 1, 0), _MOST_DOUBLINGS)
        nominal = min(self.longest, self.first * 2.0**doublings)
        return nominal * (1.0 + draw) / 2.0


QUICK: Final = Backoff(first=0.1, longest=5.0)
"""For errors that a retry can cure while somebody waits: at least 12 attempts a minute."""
HOPELESS: Final = Backoff(first=1.0, longest=300.0)
"""For errors that a retry alone cannot cure: a person has to change something first."""


class Retry:
    """Counts the failures of one thing, and waits between its attempts.

    Args:
        clock: does the waiting.
        backoff: the pauses while a retry can help.
        hopeless: the pauses while a retry cannot help.
        draw: draws uniformly from [0, 1).
    """

    def __init__(
        self,
        clock: Clock,
        backoff: Backoff = QUICK,
        *,
        hopeless: Backoff = HOPELESS,
        draw: Callable[[], float] = uniform,
    ) -> None:
        self._clock = clock
        self._backoff = backoff
        self._hopeless = hopeless
        self._draw = draw
        self._helps: bool | None = None
        self._changed = asyncio.Event()
        self.failures = 0
        """How many failures in a row, of the same kind, since the last success or change."""

    def succeeded(self) -> None:
        """Note a success: the next failure is followed by the shortest pause."""
        self.failures = 0
        self._helps = None

    def changed(self) -> None:
        """Note a change that may cure the failure: end a pause now, and begin with short pauses."""
        self.succeeded()
        self._changed.set()

    async def pause(self, *, helps: bool = True) -> None:
        """Count one failure and wait; :meth:`changed` ends the wait.

        Args:
            helps: whether a retry alone can help (an error's ``retriable``).
        """
        if helps is not self._helps:
            self.failures, self._helps = 0, helps
        self.failures += 1
        chosen = self._backoff if helps else self._hopeless
        self._changed.clear()
        await sleep_unless(
            self._changed, self._clock, chosen.seconds(self.failures, draw=self._draw())
        )


async def sleep_unless(changed: asyncio.Event, clock: Clock, seconds: float) -> None:
    """Sleep that many seconds of monotonic time, or until ``changed`` is set."""
    sleep = asyncio.ensure_future(clock.sleep(seconds))
    wake = asyncio.ensure_future(changed.wait())
    try:
        await asyncio.wait((sleep, wake), return_when=asyncio.FIRST_COMPLETED)
    finally:
        sleep.cancel()
        wake.cancel()


def retry_after(value: str, now: datetime) -> float:
    """Return the seconds of a Retry-After (RFC 9110, section 10.2.3), bounded; 0 if it has none.

    Args:
        value: the header; one that cannot be read counts as none.
        now: the time, for a header that gives a date (aware).

    Returns:
        At most :data:`LONGEST_LATER`.
    """
    if value.isascii() and value.isdigit():
        return min(float(value), LONGEST_LATER)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    if at.tzinfo is None:
        return 0.0
    return min(max(0.0, (at - now).total_seconds()), LONGEST_LATER)
