from __future__ import annotations

import gc
import io
import itertools
import json
import logging
import os
import re
import socket
import threading
import warnings
import weakref
from typing import TYPE_CHECKING

import pytest

from sds.operations import log_sink, logs
from sds.operations.repeat_filter import BURST, WINDOW_SECONDS, RepeatFilter
from tests.support.no_threads import give_no_more_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGER = logging.getLogger("sds.test_logs")


@pytest.fixture
def restored() -> Iterator[None]:
    top, ours = logging.getLogger(), logging.getLogger("sds")
    before = (list(top.handlers), top.level, ours.level)
    yield
    top.handlers[:], top.level = before[0], before[1]
    ours.setLevel(before[2])


@pytest.fixture(params=logs.FORMATS)
def output(request: pytest.FixtureRequest, restored: None) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(style=request.param, level="info", stream=stream)
    return stream


@pytest.fixture
def json_output(restored: None) -> io.StringIO:
    stream = io.StringIO()
    logs.configure(style="json", level="info", stream=stream)
    return stream


@pytest.mark.parametrize("nasty", ["two\nlines", "a\rb", "\x1b[31mred", "\u2028", 'quote"', "a=b"])
def test_an_event_is_one_line_whatever_is_in_it(output: io.StringIO, nasty: str) -> None:
    LOGGER.warning(nasty, extra={"error": nasty})
    text = output.getvalue()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1
    assert "\x1b" not in text
    assert "\r" not in text


@pytest.mark.parametrize("said", ["reason=issued", 'é: "x" reason=issued', "x\treason=issued"])
def test_what_others_say_in_an_event_is_no_field_of_it(restored: None, said: str) -> None:
    """Whoever is refused chose the words, and a reader of the text looks for ``reason=``."""
    stream = io.StringIO()
    logs.configure(style="text", stream=stream)
    LOGGER.warning("certificate refused: %s", said, extra={"reason": "identity"})
    quoted = re.sub(r'"(?:[^"\\]|\\.)*"', '""', stream.getvalue())
    assert re.findall(r"\breason=\S+", quoted) == ["reason=identity"]
    assert json.dumps(said, ensure_ascii=False)[1:-1] in stream.getvalue()


def test_an_exception_stays_on_its_line(output: io.StringIO) -> None:
    try:
        int("broken")
    except ValueError:
        LOGGER.exception("it failed")
    assert output.getvalue().count("\n") == 1
    assert "ValueError: invalid literal" in output.getvalue()


def test_json_has_documented_names_and_plain_values(json_output: io.StringIO) -> None:
    LOGGER.info("rotated", extra={"serial": 7, "names": ("a", "b"), "identity": object})
    event = json.loads(json_output.getvalue())
    assert list(event)[:4] == ["time", "level", "logger", "event"]
    assert event["time"].endswith("Z")
    assert (event["level"], event["event"], event["serial"]) == ("info", "rotated", 7)
    assert event["names"] == ["a", "b"]
    assert isinstance(event["identity"], str)


def test_text_reads_as_key_and_value(restored: None) -> None:
    stream = io.StringIO()
    logs.configure(style="text", level="info", stream=stream)
    LOGGER.info("rotated", extra={"serial": 7, "reason": "two words"})
    assert stream.getvalue().endswith(
        'INFO    sds.test_logs: rotated serial=7 reason="two words"\n'
    )


def test_levels_below_are_dropped_and_others_libraries_are_quiet(output: io.StringIO) -> None:
    LOGGER.debug("hidden")
    logging.getLogger("asyncio").info("hidden too")
    assert output.getvalue() == ""


def test_a_warning_that_repeats_is_collapsed_and_counted(json_output: io.StringIO) -> None:
    for number in range(1500):
        LOGGER.warning("no certificate for %s", number, extra={"reason": "authority_unavailable"})
    LOGGER.warning("no certificate for %s", "x", extra={"reason": "other"})
    for _ in range(50):
        LOGGER.info("a certificate")
    events = [json.loads(line) for line in json_output.getvalue().splitlines()]
    assert len([event for event in events if event.get("reason") == "authority_unavailable"]) == 10
    assert len([event for event in events if event.get("reason") == "other"]) == 1
    assert len([event for event in events if event["level"] == "info"]) == 50
    logging.getLogger().handlers[0].close()
    (last,) = [
        event
        for line in json_output.getvalue().splitlines()
        if "repeated" in (event := json.loads(line))
    ]
    assert last["repeated"] == 1490


class _Key:
    """Something that must not outlive the work that has it."""


def _fail_with_a_key(number: int) -> weakref.ref[_Key]:
    key = _Key()
    try:
        int(f"attempt {number}")
    except ValueError as error:
        info, why = (ValueError, error, error.__traceback__), {"why": error}
        level = logging.WARNING
        made = LOGGER.makeRecord("sds.x", level, "", 0, "no luck: %s", (error,), info, extra=why)
        del info, why
        logging.getLogger().handlers[0].handle(made)  # pytest's own handlers keep every event
        del made
    return weakref.ref(key)


def test_an_event_that_was_written_or_counted_keeps_no_frame_with_a_key(
    json_output: io.StringIO,
) -> None:
    gc.disable()
    try:
        for number in range(BURST + 5):
            assert _fail_with_a_key(number)() is None
    finally:
        gc.enable()
    logging.getLogger().handlers[0].close()
    events = [json.loads(line) for line in json_output.getvalue().splitlines()]
    assert "_fail_with_a_key" in events[0]["exception"]
    last, words = events[BURST], f"invalid literal for int() with base 10: 'attempt {BURST + 4}'"
    assert (last["repeated"], last["event"]) == (5, f"no luck: {words}")
    assert (last["why"], last["exception"]) == (words, f"ValueError: {words}")


def test_events_whose_values_fit_no_text_end_nothing(json_output: io.StringIO) -> None:
    handler = logging.getLogger().handlers[0]
    for _ in range(BURST + 5):
        handler.handle(logging.LogRecord("sds.x", logging.WARNING, "", 0, "%d", ("x",), None))
    LOGGER.warning("goes on")
    handler.close()
    assert "goes on" in json_output.getvalue()


def test_warnings_about_what_a_stranger_sent_do_not_fill_the_log(
    json_output: io.StringIO,
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        logs.configure(style="json", level="info", stream=json_output)
        warnings.warn("Attribute's length must be >= 2 and <= 2, but it was 3", stacklevel=1)
    for number in range(3 * BURST):
        logging.getLogger("py.warnings").warning(f"odd {number}")  # noqa: G004  as the library
    assert json_output.getvalue().count("odd") == BURST


def record(at: float, text: str = "a") -> logging.LogRecord:
    made = logging.LogRecord("sds.x", logging.WARNING, "", 0, text, None, None)
    made.created = at
    return made


def test_what_was_left_out_is_told_after_the_window_by_whatever_comes_next() -> None:
    written: list[logging.LogRecord] = []
    limit = RepeatFilter(written.append)
    assert [limit.filter(record(100.0 + n / 100)) for n in range(30)].count(True) == BURST
    assert written == []
    assert limit.filter(record(100 + WINDOW_SECONDS, "b"))
    assert [one.repeated for one in written] == [30 - BURST]  # type: ignore[attr-defined]
    # The clock was set back by a day: a new window begins.
    assert limit.filter(record(100 - 86400))
    for number in range(3000):
        limit.filter(record(200.0, str(number)))
    assert len(limit._seen) <= 1000


def test_a_clock_that_is_set_back_keeps_no_window_open() -> None:
    written: list[logging.LogRecord] = []
    limit = RepeatFilter(written.append)
    assert [limit.filter(record(90_000.0)) for _ in range(30)].count(True) == BURST
    assert limit.filter(record(100.0))
    assert [one.repeated for one in written] == [30 - BURST]  # type: ignore[attr-defined]


def test_threads_that_log_at_once_do_not_meet_in_what_is_counted(
    output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that grows while another thread walks through it is an error of whoever logs."""
    (handler,) = (one for one in logging.getLogger().handlers if isinstance(one, logs._Handler))
    lock = handler.lock
    assert lock is not None
    free: list[bool] = []

    def look() -> None:
        free.append(lock.acquire(blocking=False))
        if free[-1]:
            lock.release()

    def filtered(_self: RepeatFilter, _record: logging.LogRecord) -> bool:
        other = threading.Thread(target=look)
        other.start()
        other.join()
        return True

    monkeypatch.setattr(RepeatFilter, "filter", filtered)
    LOGGER.warning("x")
    assert free == [False]
    assert output.getvalue().count("\n") == 1


def test_a_log_that_cannot_be_written_ends_nothing(
    restored: None, capfd: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    logs.configure(style="json", level="info", stream=Full())
    LOGGER.info("x")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_stands_still_holds_up_nobody_and_lost_lines_are_said(
    restored: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(log_sink, "MOST_WAITING", 100_000)
    if kind == "pipe":
        reading, writing = os.pipe()
    else:
        reading, writing = (one.detach() for one in socket.socketpair())
    with open(reading, "rb", buffering=0) as reader, open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123  descriptors
        logs.configure(style="json", level="info", stream=stream)
        serials = itertools.count()
        for number in itertools.islice(serials, 1_000):  # more than the kernel and the sink hold
            LOGGER.info("line", extra={"serial": number, "why": "x" * 1_900})
        found = b""
        while b"were lost" not in found.rpartition(b"\n")[0]:
            found += reader.read(65_536)
            LOGGER.info("line", extra={"serial": next(serials)})
        logging.getLogger().handlers[0].close()
        events = [json.loads(line) for line in found.rpartition(b"\n")[0].splitlines()]
    expected = 0
    for event in events:  # each gap is said where it is
        if "were lost" in event["event"]:
            expected += event["times"]
        else:
            assert event["serial"] == expected
            expected += 1
    assert expected > 50


def test_a_long_line_goes_through_a_pipe_as_it_is(restored: None) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123  descriptors
        logs.configure(style="json", level="info", stream=stream)
        LOGGER.info("long", extra={"names": ["é" * 1_900] * 30})
        LOGGER.info("short")
        long, short = json.loads(reader.readline()), json.loads(reader.readline())
    assert long["names"] == ["é" * 1_900] * 30
    assert short["event"] == "short"


def test_lines_that_wait_do_not_reach_the_file_that_gets_the_number_of_a_closed_stream() -> None:
    reading, writing = os.pipe()
    other_reading, other_writing = os.pipe()
    with open(reading, "rb") as reader, open(other_reading, "rb") as other:  # noqa: PTH123  descriptors
        with open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123
            sink = log_sink.LogSink(stream)
            for _ in range(100):
                assert sink.write("x" * 2_000 + "\n")
        os.dup2(other_writing, writing)
        os.close(other_writing)
        assert len(reader.read(100 * 2_001)) == 100 * 2_001
        os.close(writing)
        assert other.read() == b""


def test_a_long_line_is_lost_whole_where_the_system_gives_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    give_no_more_threads(monkeypatch)
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123  descriptors
        sink = log_sink.LogSink(stream)
        assert not sink.write("x" * 10_000 + "\n")
        assert sink.write("short\n")
        assert reader.readline() == b"short\n"


def test_a_reader_that_set_the_pipe_to_o_nonblock_gets_every_line_whole() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "w", encoding="utf-8") as stream:  # noqa: PTH123  descriptors
        os.set_blocking(writing, False)
        sink = log_sink.LogSink(stream)
        lines = [f"{number} ".encode() + b"x" * 3_000 + b"\n" for number in range(100)]
        for line in lines:
            assert sink.write(line.decode())
        assert [reader.readline() for _ in lines] == lines
