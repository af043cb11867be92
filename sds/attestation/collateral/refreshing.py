"""Keeps collateral current: fetches it in the background, long before it is needed.

Owns the time of a fetch. Invariants: a fetch begins long before the earliest next update and at
least once a day, at a moment that differs from process to process; after a failure it is tried
again at growing intervals of at most hours, or minutes if evidence is refused until it succeeds; a
failure changes nothing on the disk and ends nothing, because the stored files are valid until their
own next update. Fetched files reach the verifiers through
:mod:`sds.attestation.collateral.followed_files`, like any other change of the folder.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sds.backoff import Backoff, uniform
from sds.clock import sleep_elapsed
from sds.errors import SdsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from pathlib import Path

    from sds.attestation.collateral.fetching import Fetcher
    from sds.attestation.collateral.storing import Fetched
    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
SOONEST: Final = timedelta(minutes=10)
LATEST: Final = timedelta(days=1)
AFTER_FAILURE: Final = Backoff(first=60.0, longest=6 * 3600.0)
WHILE_MISSED: Final = Backoff(first=60.0, longest=900.0)
"""The pauses while evidence is refused because files are missing or no longer valid."""
_EARLIEST_PART: Final = 0.3
_SPREAD: Final = 0.3


def next_fetch(now: datetime, found: Iterable[Fetched], *, draw: float) -> timedelta:
    """Return how long after a success the next fetch begins.

    Args:
        now: the moment of the success, aware.
        found: what was fetched.
        draw: a random number in [0, 1), which spreads a fleet over time.

    Returns:
        Between 30 and 60 % of the time until the earliest next update, at least ten minutes and at
        most about a day.
    """
    left = min((one.next_update - now for one in found), default=LATEST)
    part = _EARLIEST_PART + _SPREAD * draw
    return max(SOONEST, min(left * part, LATEST * (1 - _SPREAD * draw)))


class CollateralRefresher:
    """Keeps a folder of collateral current.

    Args:
        fetcher: fetches, checks and stores.
        folder: gets the files.
        clock: time.
        draw: gives random numbers in [0, 1).
        missed: says whether evidence is refused now because collateral is missing or has expired.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        folder: Path,
        *,
        clock: Clock,
        draw: Callable[[], float] = uniform,
        missed: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fetcher = fetcher
        self._folder = folder
        self._clock = clock
        self._draw = draw
        self._missed = missed
        self.failures = 0
        """Failures in a row."""
        self.failed = 0
        """Failures since the start."""

    async def run(self) -> None:
        """Fetch now, and again whenever it is time, until cancelled."""
        while True:
            pause = await self.once()
            await sleep_elapsed(
                self._clock, pause.total_seconds(), look_seconds=SOONEST.total_seconds()
            )

    async def once(self) -> timedelta:
        """Fetch now. Returns how long to wait until the next time; a failure is logged."""
        try:
            found = await self._fetcher.fetch(self._folder)
        except SdsError as error:
            self.failures += 1
            self.failed += 1
            backoff = WHILE_MISSED if self._missed() else AFTER_FAILURE
            seconds = backoff.seconds(self.failures, draw=self._draw())
            _LOGGER.warning(
                "collateral cannot be fetched, what is stored stays: %s",
                error,
                extra={
                    "reason": error.reason,
                    "failures": self.failures,
                    "again_seconds": round(seconds),
                },
            )
            return timedelta(seconds=seconds)
        self.failures = 0
        pause = next_fetch(self._clock.now().wall, found, draw=self._draw())
        _LOGGER.info(
            "collateral is current",
            extra={
                "changed": sum(one.changed for one in found),
                "next_update": f"{min(one.next_update for one in found):%FT%TZ}",
                "again_seconds": round(pause.total_seconds()),
            },
        )
        return pause
