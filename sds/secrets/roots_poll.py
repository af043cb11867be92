"""Asks the authority for its roots between renewals.

Owns when to ask. Invariants: a new root is noticed long before the next renewal,
so that it has settled by then; a failure to ask changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from sds.errors import SdsError
from sds.secrets import schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sds.authority.port import Authority
    from sds.clock import Clock, Instant

_LOGGER = logging.getLogger("sds.secrets.rotation")
_SECONDS: Final = (1.0, 30.0)


class RootsSource(Protocol):
    """An authority that can be asked for its roots alone."""

    async def roots(self) -> tuple[bytes, ...]:
        """Return the roots that the authority vouches for now, in DER.

        Raises:
            AuthorityError: the authority cannot be asked.
            EvidenceError: the authority's evidence is invalid.
        """
        ...


def pause_seconds(lifetime: float | None) -> float:
    """Return the seconds between two questions; a new root settles for longer than two of them.

    Args:
        lifetime: as for :func:`poll_roots`.
    """
    shortest, longest = _SECONDS
    pause = longest if lifetime is None else schedule.RETRY_GAP * lifetime
    return min(max(pause, shortest), longest)


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
        lifetime: the shortest lifetime in seconds; None while nothing is wanted.
        may_ask: whether to ask now.
        attempt_seconds: for one answer.
        on_roots: takes each answer.
    """
    while True:
        await clock.sleep(pause_seconds(lifetime()))
        if not may_ask():
            continue
        try:
            async with asyncio.timeout(attempt_seconds):
                roots = await source.roots()
            on_roots(roots, clock.now())
        except TimeoutError:
            _LOGGER.debug("the authority did not answer when asked for its roots")
        except SdsError as error:
            _LOGGER.debug("the authority did not give its roots: %s", error)


def roots_source(authority: Authority) -> RootsSource | None:
    """Return the authority if it can be asked for its roots alone, else None."""
    return authority if callable(getattr(authority, "roots", None)) else None  # type: ignore[return-value]
