"""Publishers that say "later" (RFC 9110, sections 10.2.3 and 15.6.4; RFC 6585, section 4).

Owns which answers mean it, and how long. Invariant: what cannot be read says nothing.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

LATER: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


def retry_after(value: str, now: datetime) -> float:
    """Seconds of a Retry-After (RFC 9110, section 10.2.3); 0 if it says nothing."""
    if value.isascii() and value.isdigit() and len(value) < 7:  # noqa: PLR2004  eleven days
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    if at.tzinfo is None:
        return 0.0
    return max(0.0, (at - now).total_seconds())
