"""Parses durations as people write them: numbers with units, or a number of seconds.

Owns the grammar. Invariant: a parsed duration is positive and short enough to be added to any date
that a certificate can contain.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_PART: Final = re.compile(r"(\d+)(ms|s|m|h|d)", re.ASCII)
_WHOLE: Final = re.compile(r"(?:\d+(?:ms|s|m|h|d))+", re.ASCII)
_UNITS: Final = {
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
_MAX_CHARACTERS: Final = 48
_EXPECTED: Final = (
    "expected a duration such as 10s, 5m, 1h30m or 250ms, or a whole number of seconds"
)
LONGEST: Final = timedelta(days=36525)
"""100 years: no certificate of ours lives longer, and dates stay within four digits."""

SCHEMA: Final = {
    "anyOf": [
        {"type": "integer", "minimum": 1},
        {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d))+$"},
    ],
    "description": "seconds, or numbers with ms, s, m, h or d: 90, 30s, 1h30m",
}
"""JSON Schema of a duration."""


def parse_duration(value: object) -> timedelta:
    """Parse ``10s``, ``5m``, ``1h30m``, ``250ms``, ``2d`` (numbers with units), or 90 (seconds).

    A :class:`~datetime.timedelta` is checked against the same bounds.

    Raises:
        ValueError: it is neither text nor a whole number, has another form, is not positive, or is
            longer than :data:`LONGEST`.
    """
    match value:
        case timedelta():
            total = value
        case bool():
            raise ValueError(_EXPECTED)
        case int():
            total = timedelta(seconds=min(max(value, 0), 2 * int(LONGEST.total_seconds())))
        case str():
            total = _parse_text(value)
        case _:
            raise ValueError(_EXPECTED)
    if total <= timedelta(0):
        raise ValueError("expected a duration above 0")
    if total > LONGEST:
        raise ValueError("this duration is longer than any certificate lives")
    return total


def _parse_text(text: str) -> timedelta:
    if not _WHOLE.fullmatch(text) or len(text) > _MAX_CHARACTERS:
        raise ValueError(_EXPECTED)
    try:
        return sum(
            (int(number) * _UNITS[unit] for number, unit in _PART.findall(text)), timedelta()
        )
    except OverflowError:
        raise ValueError("this duration is longer than any certificate lives") from None


def format_duration(duration: timedelta) -> str:
    """Write the duration in the largest unit that fits; :func:`parse_duration` gives it back."""
    for unit, length in _UNITS.items():
        if duration % length == timedelta(0):
            return f"{duration // length}{unit}"
    return f"{duration // _UNITS['ms']}ms"
