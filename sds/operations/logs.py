"""Writes structured logs: one event a line, as JSON or as text for people.

Owns both formats, and the rule that nothing else of this process writes to stderr: warnings of
Python, and exceptions that it can only print, become events (:mod:`sds.entry` silences gRPC's C
core). Invariants: an event is exactly one line, whatever it contains; a field that is not
documented is still printed, so nothing is lost, and a test keeps the code to the fields that
docs/operations.md lists; keys and tokens are never logged: callers ensure that, and tests check it.

Levels: ERROR: somebody must act. WARNING: something failed, and the program keeps trying by itself.
INFO: something changed (a rotation, a stream, a policy). DEBUG: everything else.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from sds.operations.log_sink import LogSink
from sds.operations.repeat_filter import RepeatFilter
from sds.transport.owner_lines import OwnerLines

FORMATS: Final = ("text", "json")
LEVELS: Final = ("debug", "info", "warning", "error")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MAX_VALUE_CHARACTERS: Final = 2000
_BARE: Final = re.compile(r'[^ "=]+')
_LIKE_A_FIELD: Final = re.compile(r"(?:^|\s)\w+=")
_JSON: Final = json.JSONEncoder(separators=(",", ":")).encode


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of an event: the ``extra`` of the call."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """Writes a JSON object a line: ``time``, ``level``, ``logger``, ``event``, then the fields."""

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
    """Writes ``time LEVEL logger: event key=value ...``; quotes values with spaces as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        pairs = [f"{name}={_quoted(value)}" for name, value in fields_of(record).items()]
        if record.exc_info:
            pairs.append(f"exception={json.dumps(self.formatException(record.exc_info))}")
        message = _quoted_message(record.getMessage())
        head = f"{_time(record)} {record.levelname:<7} {record.name}: {message}"
        return " ".join([head, *pairs])


def silence() -> None:
    """Write no log lines: the error of a check already says what it found."""
    _ignore_content()
    logging.getLogger("sds").addHandler(logging.NullHandler())


def configure(*, style: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send every event of this process to ``stream`` (stderr) in this format from now on.

    Args:
        style: one of :data:`FORMATS`.
        level: one of :data:`LEVELS`; events below it are dropped.
        stream: the stream to write to: stderr, because stdout belongs to the command's output.
    """
    handler = _Handler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    top = logging.getLogger()
    for old in list(top.handlers):
        top.removeHandler(old)
    top.addHandler(handler)
    logging.captureWarnings(True)  # noqa: FBT003  the standard library's own
    _ignore_content()
    sys.unraisablehook = _log_unraisable
    top.setLevel(logging.WARNING)
    logging.getLogger("sds").setLevel(level.upper())
    # These fields are not printed; to collect them costs two system calls and an import a line.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def _ignore_content() -> None:
    """Say nothing of what ``cryptography`` finds odd in certificates: strangers send these."""
    warnings.filterwarnings(
        "ignore", message="Attribute's length must be|Parsed a |The parsed certificate contains"
    )


def writes_json() -> bool:
    """Say whether every line of this process on stderr is JSON now."""
    return any(isinstance(one.formatter, JsonFormatter) for one in logging.getLogger().handlers)


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to a stream, without waiting for who reads it; events that repeat are collapsed."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._sink = LogSink(stream)
        self._lost = 0
        """Lines that were not taken, and of which nobody was told."""
        self._repeats = RepeatFilter(self.emit)
        self.addFilter(self._repeats)
        self.addFilter(OwnerLines())

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and write under one lock: the library asks filters without, in any thread."""
        self.acquire()
        try:
            return super().handle(record)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._lost and self._write(_lost(self._lost)):
                self._lost = 0
            if self._lost or not self._write(record):
                self._lost += 1
        except RecursionError:
            raise  # as the library does
        except Exception:  # noqa: BLE001  the library's own boundary
            self.handleError(record)

    def _write(self, record: logging.LogRecord) -> bool:
        return self._sink.write(self.format(record) + self.terminator)

    def close(self) -> None:
        self._repeats.flush()
        self._sink.close()
        super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the library's name
        """Do nothing: a log that cannot be written (a full disk) must not end the process."""


def _lost(times: int) -> logging.LogRecord:
    """What is said of lines that were not taken."""
    return logging.makeLogRecord(
        {
            "name": __name__,
            "levelname": "WARNING",
            "levelno": logging.WARNING,
            "msg": "log lines were lost: what reads them stood still",
            "times": times,
        }
    )


def _log_unraisable(raised: sys.UnraisableHookArgs) -> None:
    """Log an exception that the interpreter can only print."""
    error = raised.exc_value
    info = None if error is None else (raised.exc_type, error, raised.exc_traceback)
    logging.getLogger("sds.unraisable").error("an exception was ignored", exc_info=info)


def _time(record: logging.LogRecord) -> str:
    """Return the time of a record as RFC 3339 in UTC with milliseconds."""
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
    """Quote a message that could break the line, forge a second one, or be read as a field."""
    if not text.isprintable():
        return json.dumps(text)
    return json.dumps(text, ensure_ascii=False) if _LIKE_A_FIELD.search(text) else text
