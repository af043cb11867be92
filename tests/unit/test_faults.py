"""What an exception that nobody foresaw does: one line of log, one count, and nothing else."""

from __future__ import annotations

import asyncio
import errno
import logging
import re
import socket
from typing import Any

import pytest

from sds import faults
from tests.support import need
from tests.support.clock import FakeClock
from tests.support.source import modules


def broken() -> None:
    raise ZeroDivisionError("on purpose")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_said", {})


def test_a_guarded_callback_reports_and_returns(caplog: pytest.LogCaptureFixture) -> None:
    before = faults.counts().get("test", 0)
    guarded = faults.guarded("test", broken)
    for _ in range(5):
        guarded()
    assert faults.counts()["test"] == before + 5
    (record,) = caplog.records
    assert (record.levelno, record.__dict__["where"]) == (logging.ERROR, "test")
    assert record.__dict__["reason"] == "unexpected"
    assert "on purpose" in caplog.text


def test_a_line_counts_what_came_since_the_last_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in every other line with the field `times`; the metric counts from the start."""
    clock = FakeClock()
    monkeypatch.setattr(faults, "_clock", clock)
    faults.report("test", KeyError("of another kind"))
    for seconds in (0, 1, 1, 20, 1, 20):
        clock.monotonic += seconds
        faults.report("test", ValueError("again"))
    said = [one.__dict__["times"] for one in caplog.records if "again" in str(one.exc_info)]
    assert said == [1, 3, 2]


def test_another_kind_of_error_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    faults.report("test", ValueError("a"))
    faults.report("test", KeyError("b"))
    assert len(caplog.records) == 2


def test_a_cancellation_is_no_fault() -> None:
    def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        faults.guarded("test", cancelled)()


@pytest.mark.parametrize("how", ["call_soon", "call_later", "reader"])
async def test_what_reaches_the_loop_is_reported_and_the_loop_goes_on(how: str) -> None:
    loop = asyncio.get_running_loop()
    faults.watch_loop(loop)
    before = faults.counts().get("event loop", 0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        if how == "call_soon":
            loop.call_soon(broken)
        elif how == "call_later":
            loop.call_later(0, broken)
        else:
            ours.send(b"x")
            loop.add_reader(theirs, broken)
        while faults.counts().get("event loop", 0) == before:
            await asyncio.sleep(0)
        loop.remove_reader(theirs)


@pytest.mark.parametrize(
    ("what", "counted"),
    [
        ("Fatal error on SSL protocol", 0),
        ("Exception in callback ours()", 1),
    ],
)
async def test_a_handshake_that_we_gave_up_is_no_fault(what: str, counted: int) -> None:
    """uvloop tells the loop so, once in some thousand handshakes that are given up."""
    loop = asyncio.get_running_loop()
    faults.watch_loop(loop)
    before = faults.counts().get("event loop", 0)
    error = RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed")
    loop.call_exception_handler({"message": what, "exception": error})
    assert faults.counts().get("event loop", 0) == before + counted


class Full(socket.socket):
    """Has a caller, and no descriptor for it."""

    def accept(self) -> tuple[socket.socket, Any]:
        raise OSError(errno.EMFILE, "Too many open files")


async def test_one_attempt_to_accept_without_descriptors_is_one_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """asyncio calls a hundred times for it, with one caller that waits."""
    loop = asyncio.get_running_loop()
    faults.watch_loop(loop)
    before = dict(faults.counts())
    with Full() as listener, socket.socket() as caller:
        listener.bind(("127.0.0.1", 0))
        async with await loop.create_server(asyncio.Protocol, sock=listener):
            caller.connect(listener.getsockname())
            async with asyncio.timeout(5):
                while faults.counts() == before:
                    await asyncio.sleep(0)
    after = faults.counts()
    assert {
        place: after[place] - before[place] for place in after if after[place] != before[place]
    } == {"accept": 1}
    (record,) = caplog.records
    assert record.getMessage().startswith("cannot accept connections: they wait")
    assert not record.exc_info


def test_every_place_that_reports_is_counted_from_the_start() -> None:
    """The first fault there would be no increase otherwise, and raise no alert."""
    calls = re.compile(r'\b(?:report|guarded|count|Trickle|Listeners)\(\s*"([a-z][a-z ]+)"')
    places = {
        place
        for name in modules()
        for place in calls.findall((need.ROOT / name).read_text(encoding="utf-8"))
    }
    assert places == set(faults.PLACES)
