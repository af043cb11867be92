"""Decisions of rotation: no clock, no loop."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from sds.clock import Instant
from sds.errors import AuthorityRefusedError, AuthorityUnavailableError
from sds.secrets import schedule
from sds.secrets.schedule import Ask, Lease, State, Urgency, Wait, Withdraw, decide
from tests.support.certificates import NOW

DOWN = AuthorityUnavailableError("down")
LATE = AuthorityUnavailableError("late", reason="authority_no_answer")
REFUSED = AuthorityRefusedError("no", wire_reason="measurement_not_allowed")


def at(seconds: float, *, stepped: float = 0.0, suspended: float = 0.0) -> Instant:
    return Instant(
        wall=NOW + timedelta(seconds=seconds + stepped + suspended),
        monotonic=seconds,
        boottime=seconds + suspended,
    )


def held(span: float = 100.0, jitter: float = 0.0) -> State:
    lease = Lease(
        received=at(0),
        valid_from=NOW - timedelta(hours=1),
        valid_until=NOW + timedelta(seconds=span),
        jitter=jitter,
    )
    return State(lifetime=span, lease=lease)


def test_without_a_certificate_it_asks_at_once() -> None:
    assert decide(State(lifetime=10), at(0)) == Ask(Urgency.WAITING)


@pytest.mark.parametrize("span", [1.0, 10.0, 60.0, 3600.0, 86400.0])
@pytest.mark.parametrize("jitter", [0.0, 0.3, 0.999])
def test_renewal_lies_between_40_and_50_percent_with_the_window_for_others(
    span: float, jitter: float
) -> None:
    state = held(span, jitter)
    assert state.lease is not None
    due = state.lease.renew_after
    assert 0.40 * span <= due
    assert due + schedule.batch_window(span) <= 0.50 * span
    action = decide(state, at(due - 0.01))
    assert isinstance(action, Wait)
    assert action.seconds == pytest.approx(0.01, abs=1e-5)
    assert decide(state, at(due + 1e-5)) == Ask(Urgency.EARLY)


def test_jitter_only_moves_towards_earlier() -> None:
    dues = [held(jitter=jitter).lease.renew_after for jitter in (0.0, 0.5, 1.0)]  # type: ignore[union-attr]  # held() has one
    assert dues == sorted(dues, reverse=True)


def test_little_left_is_urgent() -> None:
    assert decide(held(), at(74.9)) == Ask(Urgency.EARLY)
    assert decide(held(), at(75.1)) == Ask(Urgency.WAITING)


def test_the_end_is_withdrawn_even_while_a_retry_is_due() -> None:
    state = schedule.failed(held(), DOWN, draw=0.0, now=at(99.9))
    assert decide(state, at(100.0)) == Withdraw()
    assert decide(schedule.withdrawn(state), at(100.1)) == Ask(Urgency.WAITING)


def test_a_wall_clock_set_forward_makes_it_due() -> None:
    assert decide(held(), at(10, stepped=50)) == Ask(Urgency.EARLY)
    assert decide(held(), at(10, stepped=1000)) == Withdraw()


def test_a_wall_clock_set_back_does_not_let_it_grow_old() -> None:
    assert decide(held(), at(51, stepped=-1000)) == Ask(Urgency.EARLY)


def test_what_came_while_the_clocks_were_ahead_is_renewed_when_they_are_right() -> None:
    year = 365 * 86400
    assert decide(held(), at(1, stepped=-year)) == Ask(Urgency.WAITING)
    failed = schedule.failed(held(), DOWN, draw=0.0, now=at(1, stepped=-year))
    assert isinstance(decide(failed, at(1, stepped=-year)), Wait)


def test_a_suspended_guest_wakes_up_and_renews_or_withdraws() -> None:
    assert decide(held(), at(10, suspended=45)) == Ask(Urgency.EARLY)
    assert decide(held(), at(10, suspended=95)) == Withdraw()


def test_a_suspension_ends_the_pause_before_a_retry() -> None:
    state = schedule.failed(State(lifetime=10), DOWN, draw=1.0, now=at(0))
    assert isinstance(decide(state, at(0)), Wait)
    assert decide(state, at(0, suspended=60)) == Ask(Urgency.WAITING)


def test_what_came_too_late_is_withdrawn() -> None:
    assert decide(held(span=-5.0), at(0)) == Withdraw()


@pytest.mark.parametrize("span", [10.0, 60.0, 3600.0])
@pytest.mark.parametrize("draw", [0.0, 0.5, 0.9999])
def test_no_gap_between_retries_is_above_three_percent(span: float, draw: float) -> None:
    state = held(span)
    for _ in range(40):
        state = schedule.failed(state, DOWN, draw=draw, now=at(0))
        assert state.failure is not None
        assert 0 < state.failure.retry_seconds <= 0.03 * span
    assert state.failure is not None
    assert state.failure.attempts == 40


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.9999])
def test_a_waiting_workload_is_retried_fast_first_and_never_floods(draw: float) -> None:
    state, passed, attempts = State(lifetime=86400.0), 0.0, 0
    pauses = []
    while passed < 40:
        state = schedule.failed(state, DOWN, draw=draw, now=at(passed))
        assert state.failure is not None
        pauses.append(state.failure.retry_seconds)
        passed += pauses[-1]
        attempts += 1
    assert sum(pauses[:4]) < 2  # an outage of a second is over soon
    assert max(pauses) <= schedule.MAX_WAITING_GAP_SECONDS
    assert attempts <= 22


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.9999])
def test_an_authority_that_answers_nobody_in_time_is_asked_less_and_less_often(draw: float) -> None:
    """It may have more to do than it can; the gaps stay shorter than what they follow."""
    for start, most in ((State(lifetime=3600.0), 60.0), (held(3600.0), 531.0)):
        state, passed, pauses = start, 0.0, []
        for _ in range(20):
            state = schedule.failed(state, LATE, draw=draw, now=at(0))
            assert state.failure is not None
            pauses.append(state.failure.retry_seconds)
            assert pauses[-1] <= passed + 0.1
            passed += pauses[-1]
        assert most / 2 <= pauses[-1] <= most
        down = schedule.failed(state, DOWN, draw=draw, now=at(0)).failure
        assert down is not None
        assert down.retry_seconds <= 108  # a refused connection costs the authority nothing


def test_of_those_that_nobody_answers_the_ones_with_the_least_time_left_ask_the_most_often() -> (
    None
):
    for left in range(1, 1000, 50):
        state = held(3600.0)
        for _ in range(30):
            state = schedule.failed(state, LATE, draw=1.0, now=at(3600 - left))
        assert state.failure is not None
        assert state.failure.retry_seconds == pytest.approx(max(0.1, left / 8, (left - 60) / 2))


def test_what_may_cure_a_failure_ends_the_pause_and_starts_again() -> None:
    state = State(lifetime=86400.0)
    for _ in range(10):
        state = schedule.failed(state, DOWN, draw=0.5, now=at(0))
    assert isinstance(decide(state, at(1)), Wait)
    state = schedule.hurried(state)
    assert decide(state, at(1)) == Ask(Urgency.WAITING)
    state = schedule.failed(state, DOWN, draw=0.5, now=at(1))
    assert state.failure is not None
    assert state.failure.retry_seconds <= 0.1
    assert schedule.hurried(held()) == held()


@pytest.mark.parametrize(("span", "longest"), [(2.0, 1.0), (100.0, 10.0), (86400.0, 300.0)])
def test_what_retrying_cannot_cure_is_retried_slowly(span: float, longest: float) -> None:
    for draw in (0.0, 0.9999):
        failure = schedule.failed(held(span), REFUSED, draw=draw, now=at(0)).failure
        assert failure is not None
        assert longest / 2 <= failure.retry_seconds <= longest


def test_a_success_forgets_failures() -> None:
    state = schedule.failed(State(lifetime=10), DOWN, draw=0.5, now=at(0))
    lease = held(10).lease
    assert lease is not None
    asked = dataclasses.replace(lease, asked=10)
    assert schedule.received(state, lease) == State(lifetime=10, lease=asked)


def test_the_less_is_left_the_sooner_the_next_attempt() -> None:
    """After an outage, whoever has little left is not the last to hear that it is over."""
    span = 3600.0
    for age in range(1800, 3600, 60):
        state = held(span)
        for _ in range(30):
            state = schedule.failed(state, DOWN, draw=1.0, now=at(age))
        assert state.failure is not None
        left = span - age
        assert min(0.1, left / 8) <= state.failure.retry_seconds <= max(0.1, left / 8)
