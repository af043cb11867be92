"""Collapses warnings that repeat, so that one cause does not hide all others in the log.

Owns the choice of events that are written. Events are alike if logger, level, text (without its
values) and reason are equal; all warnings of libraries are one kind, because a stranger may have
chosen values in their texts. Invariants: at most :data:`BURST` events of a kind are written in
:data:`WINDOW_SECONDS`; the others are counted, and the count (``repeated``) is written with the
next event of that kind, or soon after the window, whatever is logged next; memory is bounded;
words alone are kept, because an exception has the frames of its work, whose locals may be keys.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

BURST: Final = 10
WINDOW_SECONDS: Final = 60.0
_MOST_KINDS: Final = 1000
_OF_LIBRARIES: Final = "py.warnings"
"""The logger of warnings that the standard library captures (:func:`logging.captureWarnings`)."""

_Kind: TypeAlias = tuple[str, int, str, str]


@dataclass(slots=True, kw_only=True)
class _Seen:
    """The count of one kind of event since its window began."""

    began: float
    written: int = 0
    left_out: int = 0
    last: logging.LogRecord | None = None
    """The last event that was left out (:func:`_words_alone`)."""


class RepeatFilter(logging.Filter):
    """Passes an event on, or counts it.

    Args:
        write: writes an event without asking this filter.
    """

    def __init__(self, write: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._write = write
        self._seen: dict[_Kind, _Seen] = {}
        self._look_at = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether to write the event."""
        now = record.created
        # A wall clock that was set back must not keep a window open.
        if not self._look_at - WINDOW_SECONDS <= now < self._look_at:
            self._close_windows(now)
        if record.levelno < logging.WARNING:
            return True
        text = "" if record.name == _OF_LIBRARIES else str(record.msg)
        kind = (record.name, record.levelno, text, str(getattr(record, "reason", "")))
        seen = self._seen.get(kind)
        if seen is None:
            if len(self._seen) >= _MOST_KINDS:
                self._tell(self._seen.pop(next(iter(self._seen))))
            seen = self._seen[kind] = _Seen(began=now)
            self._look_at = min(self._look_at, now + WINDOW_SECONDS)
        if seen.written < BURST:
            seen.written += 1
            return True
        seen.left_out += 1
        with contextlib.suppress(Exception):  # what has no text could not be written either
            seen.last = _words_alone(record)
        return False

    def flush(self) -> None:
        """Write the counts so far, because the process ends."""
        for seen in self._seen.values():
            self._tell(seen)
        self._seen.clear()

    def _close_windows(self, now: float) -> None:
        over = [
            kind for kind, seen in self._seen.items() if not 0 <= now - seen.began < WINDOW_SECONDS
        ]
        for kind in over:
            self._tell(self._seen.pop(kind))
        self._look_at = min((one.began for one in self._seen.values()), default=now)
        self._look_at += WINDOW_SECONDS

    def _tell(self, seen: _Seen) -> None:
        if seen.last is not None:
            seen.last.repeated = seen.left_out
            self._write(seen.last)


def _words_alone(record: logging.LogRecord) -> logging.LogRecord:
    """Return the event with its text instead of its values, and the words of its exceptions."""
    kept = logging.makeLogRecord(
        {
            name: str(value) if isinstance(value, BaseException) else value
            for name, value in vars(record).items()
        }
    )
    kept.msg, kept.args, kept.exc_info = record.getMessage(), None, None
    if record.exc_info and record.exc_info[1] is not None:
        words = traceback.format_exception_only(record.exc_info[1])
        kept.exception = "".join(words).rstrip("\n")
    return kept
