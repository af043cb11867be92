import io
import json
from datetime import UTC, datetime

import pytest
from rich.console import Console

from sds.clock import Instant
from sds.demo.events import (
    Event,
    Exited,
    Failed,
    Ready,
    RightChanged,
    Rotated,
    Started,
    Summary,
)
from sds.demo.ledger import PeerCertificate, RotationLedger
from sds.demo.live import LiveReporter
from sds.demo.report import JsonReporter, PlainReporter, in_words

NOW = datetime(2026, 1, 1, tzinfo=UTC)
READY = Ready(
    pids={"agent": 1, "ca": 2, "envoy_client": 3, "envoy_server": 4},
    sockets={"client": "/run/c", "server": "/run/s"},
    admin={"client": "127.0.0.1:1", "server": "127.0.0.1:2"},
    entry="http://127.0.0.1:3/",
)
EVENTS: list[Event] = [
    READY,
    Rotated(workload="client", serial="ab", not_after=NOW, seen_after_ms=12.34),
    Rotated(workload="client", serial="ac", not_after=NOW, seen_after_ms=None),
    RightChanged(allowed=False, epoch=2, seen_after_ms=41.26),
    Exited(process="ca", pid=2, status=-9),
    Started(process="ca", pid=5),
    Failed(why="no answer"),
    Summary(requests=10, failed=1, rotations={"client": 2, "server": 1}, handshakes=11),
]


def test_json_is_the_interface_that_stays() -> None:
    out, err = io.StringIO(), io.StringIO()
    with JsonReporter(out, err) as reporter:
        reporter.tell(Exited(process="ca", pid=2, status=1))
        for event in EVENTS:
            reporter.tell(event)
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {
            "event": "ready",
            "pids": {"agent": 1, "ca": 2, "envoy_client": 3, "envoy_server": 4},
            "sockets": {"client": "/run/c", "server": "/run/s"},
            "admin": {"client": "127.0.0.1:1", "server": "127.0.0.1:2"},
            "entry": "http://127.0.0.1:3/",
        },
        {
            "event": "rotated",
            "workload": "client",
            "serial": "ab",
            "not_after": "2026-01-01T00:00:00Z",
            "seen_after_ms": 12.3,
        },
        {
            "event": "rotated",
            "workload": "client",
            "serial": "ac",
            "not_after": "2026-01-01T00:00:00Z",
            "seen_after_ms": None,
        },
        {"event": "right", "allowed": False, "epoch": 2, "seen_after_ms": 41.3},
        {"event": "exited", "process": "ca", "pid": 2, "status": -9},
        {"event": "started", "process": "ca", "pid": 5},
        {
            "event": "summary",
            "requests": 10,
            "failed": 1,
            "rotations": {"client": 2, "server": 1},
            "handshakes": 11,
        },
    ]
    assert err.getvalue() == "a request failed: no answer\n"


def test_plain_lines_say_the_same_in_words() -> None:
    out = io.StringIO()
    with PlainReporter(out) as reporter:
        for event in EVENTS:
            reporter.tell(event)
    text = out.getvalue()
    for wanted in (
        "curl http://127.0.0.1:3/",
        "serial ab",
        "12 ms",
        "ended with status -9",
        "answers 403, 41 ms",
    ):
        assert wanted in text
    assert text.splitlines()[-1] == in_words(EVENTS[-1])


def test_the_terminal_shows_every_workload_and_the_last_events() -> None:
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    ledger = RotationLedger({"client": "spiffe://t/client", "server": "spiffe://t/server"})
    certificate = PeerCertificate(spiffe_id="spiffe://t/client", serial="beef", not_after=NOW)
    ledger.succeeded({"client": certificate}, at=NOW)
    with LiveReporter(console) as reporter:
        reporter.refresh(ledger, Instant(wall=NOW, monotonic=0.0, boottime=0.0))
        for event in EVENTS:
            reporter.tell(event)
        reporter.refresh(ledger, Instant(wall=NOW, monotonic=0.0, boottime=0.0))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    for wanted in ("spiffe://t/client", "beef", "was started again", "1 requests", "SIMULATED"):
        assert wanted in shown


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_the_view_fits_the_terminal_and_hides_nothing_that_must_be_seen(
    width: int, height: int
) -> None:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True)
    names = {name: f"spiffe://demo.test/{name}" for name in ("client", "server")}
    ledger = RotationLedger(names)
    seen = {
        name: PeerCertificate(spiffe_id=spiffe_id, serial="beefbeefbeef", not_after=NOW)
        for name, spiffe_id in names.items()
    }
    ledger.succeeded(seen, at=NOW)
    reporter = LiveReporter(console)
    cause = "upstream connect error or disconnect/reset before headers. " * 3
    for number in range(60):
        reporter.tell(Failed(why=cause))
        reporter.tell(
            Rotated(workload="client", serial=f"{number:08x}", not_after=NOW, seen_after_ms=1234)
        )
    for _ in range(3):
        reporter.tell(Failed(why=cause))
    now = Instant(wall=NOW, monotonic=0.0, boottime=0.0)
    lines = [
        "".join(segment.text for segment in line).rstrip()
        for line in console.render_lines(reporter.screen(ledger, now))
    ]
    assert len(lines) <= height - 1
    assert all(len(line) <= width for line in lines)
    assert "SIMULATED" in lines[0]
    assert "Ctrl-C" in lines[0]
    text = "\n".join(lines)
    for heading in ("workload", "serial", "expires", "rotations", "slowest", "SPIFFE ID"):
        assert heading in text
    assert names["server"] in text
    first = next(line for line in lines if "a request failed" in line)
    assert "63 times: a request failed" in first
    assert "before headers." in first
    following = lines[lines.index(first) + 1]
    assert "client: peer saw new serial 0000003b, until " in following
    assert "1234 ms after it came" in following
