"""Asks the authority for its roots between renewals.

Owns when to ask. Invariants: a new root is noticed long before the next renewal, so that it has
settled by then; a failure to ask changes nothing but the time of the next question. The longer
nobody answers in time, the later that is, so that an authority that comes back is not met by the
questions of all agents at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final, Protocol

from sds.errors import SdsError
from sds.secrets import schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sds.authority.port import Authority
    from sds.clock import Clock, Instant

_LOGGER = logging.getLogger("sds.secrets.rotation")
_SECONDS: Final = (1.0, 30.0)
_LONGEST_SECONDS: Final = 300.0


class RootsSource(Protocol):
    """An authority that can be asked for its roots alone."""

    async def roots(self) -> tuple[bytes, ...]:
        """Return the roots that the authority vouches for now, in DER.

        Raises:
            AuthorityError: the authority cannot be asked.
            EvidenceError: the authority's evidence is invalid.
        """
        ...


def pause_seconds(lifetime: float | None, unanswered: int = 0) -> float:
    """Return the seconds between two questions; a new root settles for longer than two of them.

    Args:
        lifetime: as for :func:`poll_roots`.
        unanswered: how many questions in a row nobody answered in time. Each makes the pause
            longer, because the authority may have too much to do.
    """
    shortest, longest = _SECONDS
    pause = longest if lifetime is None else schedule.RETRY_GAP * lifetime
    pause = min(max(pause, shortest), longest)
    most = math.inf if lifetime is None else schedule.UNANSWERED_RETRY_GAP * lifetime
    return max(pause, min((1 + unanswered) * pause, most, _LONGEST_SECONDS))


async def poll_roots(
    source: RootsSource,
    clock: Clock,
    *,
    lifetime: Callable[[], float | None],
    may_ask: Callable[[], bool],
    attempt_seconds: float,
    on_roots: Callable[[Sequence[bytes], Instant], None],
) -> None:
    """Ask for the roots at intervals, until cancelled.

    Args:
        source: the authority that is asked.
        clock: waits.
        lifetime: the shortest lifetime in seconds, as it was granted; None while nothing is wanted.
        may_ask: whether to ask now.
        attempt_seconds: for one answer.
        on_roots: takes each answer.
    """
    unanswered = 0
    while True:
        await clock.sleep(pause_seconds(lifetime(), unanswered))
        if not may_ask():
            continue
        try:
            async with asyncio.timeout(attempt_seconds):
                roots = await source.roots()
            on_roots(roots, clock.now())
            unanswered = 0
        except TimeoutError:
            unanswered += 1
            _LOGGER.debug("the authority did not answer when asked for its roots")
        except SdsError as error:
            unanswered = unanswered + 1 if schedule.unanswered(error) else 0
            _LOGGER.debug("the authority did not give its roots: %s", error)


def roots_source(authority: Authority) -> RootsSource | None:
    """Return the authority if it can be asked for its roots alone, else None."""
    return authority if callable(getattr(authority, "roots", None)) else None  # type: ignore[return-value]
