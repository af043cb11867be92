"""Remembers each policy that comes into force, until the memory file has it.

Owns :class:`PolicyMemory`. Invariants: a policy is in force even if it cannot be remembered; one
that cannot be written is tried again until it is, because after a restart an older policy could be
accepted; a problem that lasts is logged once.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from sds.backoff import Backoff, Retry
from sds.policy.trust import Epoch
from sds.problems import Problems

if TYPE_CHECKING:
    from sds.admission.memory_file import Memory
    from sds.clock import Clock

_LOG = logging.getLogger("sds.admission")
_AGAIN: Final = Backoff(first=1.0, longest=60.0)


class PolicyInForce(Protocol):
    """The policy to remember; epoch 0 if none is in force."""

    @property
    def epoch(self) -> int: ...

    @property
    def digest(self) -> bytes: ...

    @property
    def document(self) -> bytes: ...


class Writer(Protocol):
    """Writes the memory file."""

    def write(self, memory: Memory) -> None:
        """Replace the file by one with this content.

        Raises:
            OSError: the file cannot be written.
        """
        ...


class PolicyMemory:
    """Keeps a memory file up to date with the policy in force.

    Args:
        policy: the policy in force.
        memory: what the file has; shared with who remembers admitted sandboxes.
        file: the file.
        clock: waits between attempts.
    """

    def __init__(
        self, policy: PolicyInForce, memory: Memory, file: Writer, *, clock: Clock
    ) -> None:
        self._policy = policy
        self._memory = memory
        self._file = file
        self._retry = Retry(clock, _AGAIN)
        self._failed = asyncio.Event()
        self._problems = Problems()

    def keep(self) -> None:
        """Write the policy in force, if the file has another one; call this after each change."""
        seen = Epoch(number=self._policy.epoch, digest=self._policy.digest)
        if not seen.number or (seen == self._memory.seen and not self._failed.is_set()):
            return
        self._memory.seen, self._memory.policy = seen, self._policy.document
        self._failed.set()  # until it is written, whatever keeps it from being written
        try:
            self._file.write(self._memory)
        except OSError as error:
            if self._problems.is_news(error):
                _LOG.error(
                    "the policy's epoch cannot be remembered, and is tried again: after a restart "
                    "an older policy could be accepted",
                    extra={"why": error.strerror, "policy_epoch": seen.number},
                )
            return
        self._failed.clear()
        self._retry.succeeded()
        if self._problems.over():
            _LOG.info("the policy's epoch is remembered", extra={"policy_epoch": seen.number})

    async def run(self) -> None:
        """Try again after each failure, until cancelled."""
        while True:
            await self._failed.wait()
            await self._retry.pause()
            self.keep()
