"""Copies the newest policy from one process of a machine to another.

The agent learns later epochs from its authority. ``sds admission`` on the same machine connects to
no authority, so it follows the agent's copy. Owns the writing and the following of the copy.
Invariants: the follower offers the copy to its own holder, which verifies it, so that a forged copy
has no effect; a missing copy is not a fault, because the agent may have learnt nothing yet; no file
is read or written on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.errors import ConfigurationError
from sds.files import check_replaceable, read_file, replace_file
from sds.policy.succession import MOST_OFFERED_BYTES, OfferOutcome
from sds.problems import Problems

if TYPE_CHECKING:
    from pathlib import Path

    from sds.clock import Clock
    from sds.policy.holder import PolicyHolder

_LOGGER = logging.getLogger(__name__)
_AGAIN_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 1.0
_Mark = tuple[int, int, int]


class PolicyCopy:
    """Writes the copy; :meth:`run` must run.

    It does not write the policy that the holder has at first: the follower reads that policy from
    the same files, and after a restart it may be older than the copy.

    Args:
        place: the file; its folder must be there.
        holder: has the policy.
    """

    def __init__(self, place: Path, holder: PolicyHolder) -> None:
        self._place = place
        self._holder = holder
        self._written = holder.digest
        self._problems = Problems()

    def require(self) -> None:
        """Check at the start that the copy can be written: the first change may be months away.

        Raises:
            ConfigurationError: it cannot.
        """
        folder = self._place.parent
        try:
            check_replaceable(self._place)
            folder.stat()
        except OSError as error:
            why = error.strerror
        else:
            why = "" if os.access(folder, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
        if why:
            raise ConfigurationError(
                f"policy_copy: {self._place} cannot be written: {why}",
                advice="name a file in a folder that exists and that the agent may write",
            )

    async def run(self) -> None:
        """Write after every change, until cancelled."""
        changed = asyncio.Event()
        stop = self._holder.listen(changed.set)
        try:
            while True:
                changed.clear()
                await self._write()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_AGAIN_SECONDS):
                        await changed.wait()
        finally:
            stop()

    async def _write(self) -> None:
        digest = self._holder.digest
        if digest == self._written:
            return
        try:
            await threads.POLICY_COPY.run(
                replace_file, self._place, self._holder.document, mode=0o644
            )
        except OSError as error:
            if self._problems.is_news(error.strerror):  # its words name another file each time
                _LOGGER.warning(
                    "the policy cannot be copied to %s, and is tried again: %s",
                    self._place,
                    error.strerror,
                    extra={"origin": str(self._place)},
                )
            return
        self._written = digest
        if self._problems.over():
            _LOGGER.info("the policy is copied again", extra={"origin": str(self._place)})


async def follow_copy(place: Path, holder: PolicyHolder, *, clock: Clock) -> None:
    """Offer the copy to a holder after every change, and when its time comes, until cancelled.

    It looks at the file every second and does not have the kernel watch the folder: that is the
    agent's runtime directory, which comes and goes with the agent, and a watch wakes the process
    twice as often.

    Args:
        place: the file, which may be missing.
        holder: verifies and takes it.
        clock: time.
    """
    seen: _Mark | None = None
    outcome = OfferOutcome()
    problems = Problems()
    while True:
        if outcome.is_worth_another_offer(clock.now().wall):
            seen = None  # it was refused for its time alone
        try:
            seen, content = await threads.POLICY_COPY.run(_changed, place, seen)
            if problems.over():
                _LOGGER.info(
                    "the agent's copy of the policy can be read again",
                    extra={"origin": str(place)},
                )
        except OSError as error:
            content = None
            why = error.strerror or type(error).__name__
            if problems.is_news(why):
                _LOGGER.warning(
                    "the agent's copy of the policy cannot be read, what is in force stays: %s",
                    why,
                    extra={"origin": str(place)},
                )
        if content is not None:
            outcome = holder.take(content, origin=str(place))
        await clock.sleep(_LOOK_SECONDS)


def _changed(place: Path, seen: _Mark | None) -> tuple[_Mark | None, bytes | None]:
    """Return the file's mark, and its content if the mark differs from ``seen``."""
    try:
        found = place.stat()
    except FileNotFoundError:
        return None, None
    mark = (found.st_ino, found.st_mtime_ns, found.st_size)
    return mark, None if mark == seen else read_file(place, max_bytes=MOST_OFFERED_BYTES)
