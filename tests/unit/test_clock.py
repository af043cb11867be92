"""Waiting while clocks move by themselves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from sds.clock import LOOK_SECONDS, Instant, sleep_elapsed, sleep_while
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize("passes", [FakeClock.suspend, FakeClock.step])
async def test_time_in_which_the_machine_stands_still_counts(
    passes: Callable[[FakeClock, float], None],
) -> None:
    """It is suspended; or a hypervisor pauses it, and its clock is set afterwards."""
    clock = FakeClock()
    sleep = asyncio.create_task(sleep_elapsed(clock, 86400))
    await clock.advance(60)
    passes(clock, 86400)
    await clock.advance(LOOK_SECONDS)
    assert sleep.done()


@pytest.mark.parametrize("step", [-86400.0, 50.0])
async def test_a_clock_that_is_set_makes_no_sleep_longer(step: float) -> None:
    clock = FakeClock()
    sleep = asyncio.create_task(sleep_elapsed(clock, 100))
    await clock.advance(1)
    clock.step(step)
    await clock.advance(98 - max(step, 0))
    assert not sleep.done()
    await clock.advance(1)
    assert sleep.done()


async def test_a_sleep_is_as_long_as_it_should_be() -> None:
    clock = FakeClock()
    sleep = asyncio.create_task(sleep_elapsed(clock, 100))
    await clock.advance(99.9)
    assert not sleep.done()
    await clock.advance(0.1)
    assert sleep.done()


async def test_a_wait_for_a_moment_of_the_wall_clock_follows_that_clock() -> None:
    clock = FakeClock()
    end = clock.wall.timestamp() + 86400

    def left(now: Instant) -> float:
        return end - now.wall.timestamp()

    sleep = asyncio.create_task(sleep_while(clock, left))
    await clock.advance(60)
    clock.step(86400)
    await clock.advance(LOOK_SECONDS)
    assert sleep.done()
