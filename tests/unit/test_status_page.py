from __future__ import annotations

import dataclasses
import datetime as dt
import re
from html.parser import HTMLParser

import pytest

from sds.operations.state import IdentityHealth, IdentityState
from sds.operations.status_page.render import MAX_ROWS, duration, page
from sds.operations.status_page.style import STYLE
from tests.support.page import NOW, identity, troubled


class Elements(HTMLParser):
    """Counts elements and keeps text and attributes."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_shown_and_nothing_is_loaded_or_run() -> None:
    found = Elements(page(troubled(), nonce="n"))
    assert "script" not in found.tags
    assert not {"src", "href", "srcset", "action"} & {name for name, _ in found.attributes}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    for text in (
        "not ready",
        "<script>alert(1)</script>",
        "no SVID",
        "connection refused",
        "Failed to load certificate chain from <inline>",
        "epoch 40 is lower than 41",
        "SIMULATED",
        "partner.example",
        "up 3 d 4 h",
        "NACKed",
    ):
        assert text in found.text, text


def test_what_clients_and_peers_say_controls_no_terminal_and_turns_no_text() -> None:
    """People read the page with curl, too; U+202E turns what follows it in a browser."""
    said = "\x1b[2J\x9b\u202e\u200b\ud800\r\n"
    (client, *_), (error, *_) = troubled().clients, troubled().errors
    state = dataclasses.replace(
        troubled(),
        authority=said,
        warnings=(said,),
        identities=(dataclasses.replace(identity("a", left=0.5), message=said, reason=said),),
        clients=(dataclasses.replace(client, node=said, workload=said),),
        errors=(dataclasses.replace(error, about=said, words=said),),
    )
    text = page(state, nonce="n")
    assert not {*text} & {*said} - {"[", "2", "J", "\n"}
    assert text.count("\\x1b[2J\\x9b\\u202e\\u200b\\ud800\\r\\n") == 8
    text.encode()


@pytest.mark.parametrize(
    ("left", "error", "health"),
    [
        (1, "", IdentityHealth.GOOD),
        (0.36, "x", IdentityHealth.GOOD),
        (0.34, "", IdentityHealth.LATE),
        (0.14, "", IdentityHealth.BAD),
        (-1, "", IdentityHealth.WAITING),
        (-1, "x", IdentityHealth.BAD),
    ],
)
def test_health(left: float, error: str, health: IdentityHealth) -> None:
    assert identity("a", left=left, error=error).health(NOW) is health


def test_what_nobody_wants_is_at_rest_and_never_late() -> None:
    """As in metrics and alerts: an SVID that is kept for callers that come back is not renewed."""
    kept = dataclasses.replace(identity("kept", left=0.05), wanted=False, renew_at=None)
    coming = dataclasses.replace(identity("coming", left=-1, error="down"), wanted=False)
    assert kept.health(NOW) is IdentityHealth.GOOD
    assert coming.health(NOW) is IdentityHealth.WAITING
    state = dataclasses.replace(troubled(), identities=(kept, coming), clients=(), errors=())
    shown = page(state, nonce="n")
    assert shown.count("at rest") == 2
    assert "<b>0</b><span>without an SVID</span>" in shown


def test_a_renewal_that_is_late_is_due_and_an_error_of_another_day_has_its_date() -> None:
    late = dataclasses.replace(identity("late", left=0.2), renew_at=NOW - dt.timedelta(minutes=9))
    error = dataclasses.replace(troubled().errors[0], at=NOW - dt.timedelta(days=2))
    shown = page(dataclasses.replace(troubled(), identities=(late,), errors=(error,)), nonce="n")
    assert ">due</td>" in shown
    assert "2029-12-30 12:00:00" in shown


def test_remaining_is_between_zero_and_one_whatever_the_clock_says() -> None:
    new = identity("a", left=0.5)
    assert new.remaining(NOW - dt.timedelta(days=9)) == 1
    assert new.remaining(NOW + dt.timedelta(days=9)) == 0
    assert IdentityState(spiffe_id="x", not_after=NOW, received_at=NOW).remaining(NOW) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0.5, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (90061, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(dt.timedelta(seconds=seconds)) == text


def test_long_lists_are_cut_and_say_so_and_the_worst_come_first() -> None:
    many = (*tuple(identity(f"w{n}", left=0.5) for n in range(MAX_ROWS)), identity("x", left=0.1))
    document = page(dataclasses.replace(troubled(), identities=many), nonce="n")
    assert "1 more are not shown." in document
    assert document.index("/sa/x") < document.index("/sa/w0")


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_is_enough_in_both_schemes(scheme: int) -> None:
    """WCAG 2.1, success criterion 1.4.3."""
    colours = dict(re.findall(r"--([a-z-]+):(#[0-9a-f]+)", STYLE.split("@media")[scheme]))
    pairs = [("text", "page"), ("text", "card"), ("quiet", "page"), ("quiet", "card")]
    pairs += [(name, f"{name}-back") for name in ("good", "late", "bad", "waiting")]
    pairs += [("bad", "card")]
    for front, back in pairs:
        one, two = sorted((luminance(colours[front]), luminance(colours[back])))
        assert (two + 0.05) / (one + 0.05) >= 4.5, (front, back)
