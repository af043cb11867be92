"""Repeats an attempt to collect evidence that failed for a reason that can pass.

Owns the loop of every attester that asks a device. Invariants: the number of attempts is bounded;
another one follows only if the evidence is unavailable now (:class:`EvidenceUnavailableError`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sds.backoff import uniform
from sds.errors import EvidenceUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sds.backoff import Backoff
    from sds.clock import Clock

_Collected = TypeVar("_Collected")


async def attempted(
    attempt: Callable[[], Awaitable[_Collected]], *, most: int, pauses: Backoff, clock: Clock
) -> _Collected:
    """Return what the first attempt gives that succeeds.

    Raises:
        EvidenceUnavailableError: the error of the last attempt.
    """
    for failures in range(1, most):
        try:
            return await attempt()
        except EvidenceUnavailableError:
            await clock.sleep(pauses.seconds(failures, draw=uniform()))
    return await attempt()
