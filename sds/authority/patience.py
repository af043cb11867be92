"""How long an agent waits for an authority that answers nobody in time.

Owns the decision, as pure functions. Invariants: the first attempt after an answer waits
``connect_seconds``; a longer wait follows only attempts that nobody answered in time; one round
over all replicas takes no longer than ``answer_seconds``, unless ``connect_seconds`` itself asks
for more.

An authority with more to do than it can answers late. If its agents always gave up at the same
moment, it would make every handshake for somebody who has gone, and would never catch up
(docs/performance.md, "The authority at scale"). An agent that waits longer is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import grpc

from sds.reasons.authority import NO_ANSWER

if TYPE_CHECKING:
    from sds.authority.attested import AuthoritySettings

_OVERLOADED: Final = frozenset(
    {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}
)
_MOST_DOUBLINGS: Final = 16


def longest_seconds(settings: AuthoritySettings) -> float:
    """Return the longest time for handshake, Hello and Challenge with one address."""
    share = settings.answer_seconds / (1 + len(settings.addresses))
    return max(settings.connect_seconds, share)


def patient_seconds(settings: AuthoritySettings, unanswered: int) -> float:
    """Return the time for handshake, Hello and Challenge with one address.

    Args:
        settings: the configured times.
        unanswered: how many attempts in a row nobody answered in time.
    """
    doubled = settings.connect_seconds * 2.0 ** min(unanswered, _MOST_DOUBLINGS)
    return min(doubled, longest_seconds(settings))


def reason_of_end(code: grpc.StatusCode, details: str) -> str | None:
    """Return the reason if a stream ended for lack of time or room, else None.

    Args:
        code: gRPC's status.
        details: its text; gRPC itself says UNAVAILABLE if a connection took too long.
    """
    slow = "timed out" in details or "Timeout" in details
    return NO_ANSWER if slow or code in _OVERLOADED else None
