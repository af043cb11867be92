"""The one retry policy: fast first, bounded, and reset when something changes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.backoff import HOPELESS, LONGEST_LATER, QUICK, Backoff, Retry, retry_after
from tests.support.certificates import NOW
from tests.support.clock import FakeClock

draws = st.floats(min_value=0.0, max_value=1.0, exclude_max=True)


@given(st.integers(min_value=1, max_value=10_000), draws, draws)
def test_a_pause_lies_between_half_and_all_of_its_nominal_length(
    failures: int, draw: float, first: float
) -> None:
    backoff = Backoff(first=0.01 + first, longest=5.0)
    nominal = min(5.0, (0.01 + first) * 2.0 ** min(failures - 1, 1000))
    assert nominal / 2 <= backoff.seconds(failures, draw=draw) <= nominal


@given(draws)
def test_no_pause_is_longer_than_the_failure_has_lasted_and_a_quick_one(draw: float) -> None:
    lasted = 0.0
    for failures in range(1, 40):
        pause = QUICK.seconds(failures, draw=draw)
        assert pause <= max(2.1 * lasted, QUICK.first)
        lasted += pause


def test_forty_seconds_of_failures_are_few_attempts() -> None:
    for draw in (0.0, 0.999):
        passed, attempts = 0.0, 0
        while passed < 40:
            attempts += 1
            passed += QUICK.seconds(attempts, draw=draw)
        assert 10 <= attempts <= 22


async def test_a_success_and_a_change_start_again() -> None:
    clock = FakeClock()
    retry = Retry(clock, draw=lambda: 0.999)
    for _ in range(8):
        pausing = asyncio.create_task(retry.pause())
        await clock.advance(10)
        assert pausing.done()
    pausing = asyncio.create_task(retry.pause())
    await clock.advance(4)
    assert not pausing.done()
    retry.changed()
    await clock.settle()
    assert pausing.done()
    pausing = asyncio.create_task(retry.pause())
    await clock.advance(QUICK.first)
    await clock.settle()
    assert pausing.done()
    retry.succeeded()
    assert retry.failures == 0


async def test_what_a_retry_cannot_help_waits_longer_and_never_for_ever() -> None:
    clock = FakeClock()
    retry = Retry(clock, draw=lambda: 0.999)
    for _ in range(12):
        pausing = asyncio.create_task(retry.pause(helps=False))
        await clock.settle()
        assert not pausing.done()
        await clock.advance(HOPELESS.longest)
        assert pausing.done()
    # The failure is another one now, which a retry can help: fast again.
    pausing = asyncio.create_task(retry.pause())
    await clock.advance(QUICK.first)
    await clock.settle()
    assert pausing.done()


async def test_a_pause_that_is_cancelled_leaves_no_task() -> None:
    retry = Retry(FakeClock())
    pausing = asyncio.create_task(retry.pause())
    await asyncio.sleep(0)
    pausing.cancel()
    await asyncio.wait([pausing])
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", 0.0),
        ("17", 17.0),
        ("-1", 0.0),
        ("soon", 0.0),
        ("\u0661", 0.0),
        ("9" * 400, LONGEST_LATER),
        ("999999", LONGEST_LATER),
        ("1000000", LONGEST_LATER),  # eleven days and a half
        ("00000017", 17.0),
        (format_datetime(NOW + timedelta(seconds=40), usegmt=True), 40.0),
        (format_datetime(NOW - timedelta(days=1), usegmt=True), 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_LATER),
        ("Fri, 31 Dec 9999 23:59:59 -0000", 0.0),
    ],
)
def test_a_server_that_says_later_says_when_within_a_bound(value: str, seconds: float) -> None:
    assert retry_after(value, NOW) == seconds
