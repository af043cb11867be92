"""Parses moments as people write them: a date, a time, and its offset from UTC.

Owns the grammar, RFC 3339 section 5.6; seconds may be left out. Invariant: a parsed moment is in
UTC. A bare number is refused: nobody can tell a date without its dashes from a count of seconds.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_FORM: Final = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:\d\d)", re.ASCII
)
_EXPECTED: Final = "expected a date and time with its offset, such as 2026-01-31T12:00:00Z"

SCHEMA: Final = {"type": "string", "format": "date-time"}
"""JSON Schema of a moment."""


def parse_moment(value: object) -> datetime:
    """Parse ``2026-01-31T12:00:00Z`` or ``2026-01-31T13:00:00+01:00``, and return it in UTC.

    A :class:`~datetime.datetime` with an offset passes, in UTC.

    Raises:
        ValueError: it has another form, no such day or hour exists, or it is outside of the years 1
            to 9999 in UTC.
    """
    moment = value
    if isinstance(value, str):
        text = value.upper()
        if not _FORM.fullmatch(text):
            raise ValueError(_EXPECTED)
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise ValueError(f"{_EXPECTED}: {error}") from None
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError(_EXPECTED)
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        # These are the first or last hours of the calendar in another zone.
        raise ValueError("this moment is outside of the years 1 to 9999 in UTC") from None
