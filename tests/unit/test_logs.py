from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from sds.operations import logs

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
