"""Answers of publishers: how much is read, and how long a publisher without one is left alone.

Owns which answers mean "later", and for how long (RFC 9110, sections 10.2.3 and 15.6.4; RFC 6585,
section 4). Invariants: a header that cannot be read is ignored; at most one byte more of a body is
kept than its caller accepts.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from sds.backoff import Backoff

if TYPE_CHECKING:
    from datetime import datetime

    import aiohttp

LATER: Final = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})

AFTER_FAILURE: Final = Backoff(first=10.0, longest=3600.0)
"""How long a source of VCEKs is left alone after failures."""


async def read_body(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """Read the body; if it is longer than ``most`` bytes, read only a little more than that."""
    body = await answer.content.read(most + 1)
    while len(body) <= most and not answer.content.at_eof():
        body += await answer.content.read(most + 1)
    return body


def retry_after(value: str, now: datetime) -> float:
    """Return the seconds of a Retry-After (RFC 9110, section 10.2.3); 0 if it gives none."""
    if value.isascii() and value.isdigit() and len(value) < 7:  # noqa: PLR2004  eleven days
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return 0.0
    if at.tzinfo is None:
        return 0.0
    return max(0.0, (at - now).total_seconds())
