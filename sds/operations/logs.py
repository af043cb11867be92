"""Structured logs: one event a line, as JSON or as text for people.

Owns both formats, and that nothing else of this process writes to stderr: warnings of Python and
exceptions that it can only print become events (gRPC's C core is silenced in
:mod:`sds.entry`). Invariants: an event is exactly one line, whatever is in it; a field that is not
documented is still printed (nothing is lost), and a test keeps the code to the fields that
docs/operations.md lists; keys and tokens are never logged, which is the callers'
duty and has tests of its own.

Levels: ERROR: somebody must act. WARNING: something failed that the program goes on curing by
itself. INFO: something changed (a rotation, a stream, a policy). DEBUG: everything else.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from sds.operations.repeats import RepeatFilter
from sds.transport.owner_lines import OwnerLines

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MAX_VALUE_CHARACTERS: Final = 2000
_BARE: Final = re.compile(r'[^ "=]+')
_JSON: Final = json.JSONEncoder(separators=(",", ":")).encode


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of an event: the ``extra`` of the call."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, ``event``, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name, value in fields_of(record).items():
            event.setdefault(name, _plain(value))
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return _JSON(event)


class TextFormatter(logging.Formatter):
    """``time LEVEL logger: event key=value ...``; values with spaces are quoted as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = [f"{name}={_quoted(value)}" for name, value in fields_of(record).items()]
        if record.exc_info:
            pairs.append(f"exception={json.dumps(self.formatException(record.exc_info))}")
        message = _quoted_message(record.getMessage())
        head = f"{_time(record)} {record.levelname:<7} {record.name}: {message}"
        return " ".join([head, *pairs])


def silence() -> None:
    """Write no lines: what a check finds is said once, by its error."""
    logging.getLogger("sds").addHandler(logging.NullHandler())


def configure(*, style: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send every event of this process to ``stream`` (stderr) in this format from now on.

    Args:
        style: one of :data:`FORMATS`.
        level: one of :data:`LEVELS`; events below it are dropped.
        stream: where to; stderr, so that stdout stays the command's.
    """
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    top = logging.getLogger()
    for old in list(top.handlers):
        top.removeHandler(old)
    top.addHandler(handler)
    logging.captureWarnings(True)  # noqa: FBT003  the standard library's own
    sys.unraisablehook = _log_unraisable
    top.setLevel(logging.WARNING)
    logging.getLogger("sds").setLevel(level.upper())
    # Not printed, so not asked for: two system calls and an import for every line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def writes_json() -> bool:
    """Say whether every line of this process on stderr is JSON now."""
    return any(isinstance(one.formatter, JsonFormatter) for one in logging.getLogger().handlers)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to a stream; events that repeat are collapsed."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._repeats = RepeatFilter(self.emit)
        self.addFilter(self._repeats)
        self.addFilter(OwnerLines())

    def close(self) -> None:
        self._repeats.flush()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        """A log that cannot be written (a full disk) ends nothing, and nobody can be told."""


def _log_unraisable(raised: sys.UnraisableHookArgs) -> None:
    """What the interpreter can only print, as an event."""
    error = raised.exc_value
    info = None if error is None else (raised.exc_type, error, raised.exc_traceback)
    logging.getLogger("sds.unraisable").error("an exception was ignored", exc_info=info)


def _time(record: logging.LogRecord) -> str:
    """RFC 3339 in UTC with milliseconds."""
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(part) for part in value]
    return str(value)[:_MAX_VALUE_CHARACTERS]


def _quoted(value: object) -> str:
    plain = _plain(value)
    if isinstance(plain, str) and plain.isprintable() and _BARE.fullmatch(plain):
        return plain
    return json.dumps(plain)


def _quoted_message(text: str) -> str:
    """Quote a message from anywhere, so that it never breaks the line nor forges a second one."""
    return text if text.isprintable() else json.dumps(text)
