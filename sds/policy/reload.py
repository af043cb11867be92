"""Follows the policy's file or directory, and offers its content to the holder.

Owns reading and watching. Invariants: a file counts only as a whole (the signature of a
half-written one is invalid, so it changes nothing, and the next event brings the rest); a replaced
file, a file written in place, and Kubernetes' swap of the ``..data`` symlink are all noticed, by
the kernel's events or by a look every minute; a file that cannot be read leaves the last good
policy in force, and status and metrics say that it cannot; after the start nothing is read on the
event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.errors import ConfigurationError, PolicyError
from sds.files import is_folder
from sds.policy.envelope import MAX_SIGNED_BYTES
from sds.policy.offered_files import read_signed
from sds.policy.succession import OfferOutcome
from sds.problems import Problems
from sds.settings.watching import watch_folder
from sds.supervision import supervised

if TYPE_CHECKING:
    from pathlib import Path

    from sds.clock import Clock
    from sds.policy.holder import PolicyHolder

_LOGGER = logging.getLogger(__name__)
_LOOK_EVERY: Final = 60.0
_ANSWER_SECONDS: Final = 30.0


class PolicyFiles:
    """The policy's place on disk, read into a holder.

    Args:
        place: a signed file, or a directory of them.
        holder: gets the content.
        clock: time.
    """

    def __init__(self, place: Path, holder: PolicyHolder, *, clock: Clock) -> None:
        """Read nothing yet: call :meth:`load`, then run :meth:`follow`."""
        self.holder = holder
        self._place = place
        self._clock = clock
        self._last: bytes | None = None
        self._outcome = OfferOutcome()
        """The outcome of the last offer from here (the authority offers to the holder too)."""
        self._asked = asyncio.Event()
        self._problems = Problems()
        """Why it cannot be read, as it was logged last."""

    def load(self) -> None:
        """Read and offer the content, whether it changed or not.

        Raises:
            ConfigurationError: it cannot be read.
        """
        self._last = read_signed(self._place, max_bytes=MAX_SIGNED_BYTES)
        self._outcome = self.holder.take(self._last, origin=str(self._place))

    def ask(self) -> None:
        """Read again at once (SIGHUP)."""
        self._last = None
        self._problems.tell_again()
        self._asked.set()

    async def follow(self) -> None:
        """Read again after every change, until cancelled."""
        watching = asyncio.create_task(
            supervised("policy-files", self._watch, clock=self._clock), name="policy-files"
        )
        try:
            while True:
                await self._sleep(self._wait())
                self._asked.clear()
                await self._look()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _wait(self) -> float:
        retry_at = self._outcome.retry_at
        if retry_at is None:
            return _LOOK_EVERY
        left = (retry_at - self._clock.now().wall).total_seconds()
        return max(0.0, min(_LOOK_EVERY, left))

    async def _look(self) -> None:
        due = self._outcome.is_worth_another_offer(self._clock.now().wall)
        try:
            content = await self._read()
        except ConfigurationError as error:
            self._outcome = OfferOutcome()  # the file that it waited for is gone, so nothing is due
            self._last = None
            missed = PolicyError(error.message, advice=error.advice, reason="policy_unreadable")
            self.holder.missed(missed)
            if self._problems.is_news(missed):
                _LOGGER.warning(
                    "the policy cannot be read, what is in force stays: %s",
                    missed,
                    extra={"origin": str(self._place), "reason": missed.reason},
                )
            return
        if self._problems.over():
            _LOGGER.info("the policy can be read again", extra={"origin": str(self._place)})
        if content != self._last or due:
            self._last = content
            self._outcome = self.holder.take(content, origin=str(self._place))

    async def _read(self) -> bytes:
        """Read the content.

        Raises:
            ConfigurationError: the place cannot be read, or does not answer.
        """
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await threads.POLICY.run(
                    read_signed, self._place, max_bytes=MAX_SIGNED_BYTES
                )
        except TimeoutError as error:
            raise ConfigurationError(
                f"{self._place} does not answer within {_ANSWER_SECONDS:g} s",
                advice="check whether its file system hangs",
            ) from error

    async def _watch(self) -> None:
        """Set ``_asked`` after every event around the place."""
        # Watch the parent: a replaced file has another inode, and a swapped symlink is in the
        # parent.
        there = await threads.POLICY.run(is_folder, self._place)
        folder = self._place if there else self._place.parent
        await watch_folder(folder, self._asked.set, clock=self._clock)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()
