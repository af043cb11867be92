"""A long-lived task that ends is noticed, counted and started again; told to end, it ends."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from sds.supervision import supervised
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def _returns() -> None:
    """Ends at once."""


async def _raises() -> None:
    raise KeyError("no error of ours")


async def _is_cancelled_from_below() -> None:
    below = asyncio.get_running_loop().create_future()
    below.cancel()
    await below


class PanicException(BaseException):
    """What a library in Rust raises when it panics."""


async def _panics() -> None:
    raise PanicException("index out of bounds")


async def _panics_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_panics())


@pytest.mark.parametrize(
    "run", [_returns, _raises, _is_cancelled_from_below, _panics, _panics_in_a_group]
)
async def test_a_task_that_ends_starts_again(
    run: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    clock, starts = FakeClock(), list[str]()

    async def counted() -> None:
        starts.append("lane")
        await run()

    task = asyncio.create_task(supervised("lane", counted, clock=clock))
    await clock.advance(60)
    assert not task.done()
    assert 11 < len(starts) < 41  # again and again, at a bounded rate
    assert all(getattr(record, "reason", "") == "task_ended" for record in caplog.records)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_task_that_is_told_to_end_ends() -> None:
    clock, starts = FakeClock(), list[str]()

    async def waits() -> None:
        starts.append("lane")
        await asyncio.Event().wait()

    task = asyncio.create_task(supervised("lane", waits, clock=clock))
    await clock.settle()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert len(starts) == 1
