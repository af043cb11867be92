"""The oldest and the smallest go by turns."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from sds.workload.fair_row import FairRow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


async def order(sizes: Sequence[int], *, cancelled: int | None = None) -> list[int]:
    row, done = FairRow(), []

    async def work(size: int) -> None:
        async with row.turn(size):
            await asyncio.sleep(0)
            done.append(size)

    tasks = [asyncio.create_task(work(size)) for size in sizes]
    await asyncio.sleep(0)
    if cancelled is not None:
        tasks[cancelled].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(1), row.turn(0):  # nobody kept the turn
        return done


async def test_a_small_one_waits_for_two_at_most() -> None:
    done = await order([500] * 20 + [3])
    assert done.index(3) <= 2


async def test_a_large_one_is_not_passed_by_for_ever() -> None:
    done = await order([1, 500, *[1] * 20])
    assert done.index(500) <= 2


async def test_equal_ones_go_in_their_order() -> None:
    sizes = [7] * 10
    assert await order(sizes) == sizes


async def test_one_that_leaves_keeps_nobody_waiting() -> None:
    for number in range(4):
        done = await order([500, 1, 500, 2], cancelled=number)
        assert len(done) == 3


async def test_one_that_leaves_when_it_is_its_turn_passes_it_on() -> None:
    row = FairRow()
    release = asyncio.Event()

    async def hold() -> None:
        async with row.turn(1):
            await release.wait()

    async def wait() -> bool:
        async with row.turn(1):
            return True

    first = asyncio.create_task(hold())
    await asyncio.sleep(0)
    second, third = asyncio.create_task(wait()), asyncio.create_task(wait())
    await asyncio.sleep(0)
    release.set()
    await asyncio.sleep(0)  # the turn is given to the second, which has not heard of it
    second.cancel()
    assert await third
    await first


async def test_large_ones_that_had_their_turn_take_no_memory() -> None:
    row, turns, most = FairRow(), 0, 0
    sizes = itertools.count(1000)

    async def owner(next_size: Callable[[], int]) -> None:
        nonlocal turns, most
        while turns < 2000:
            async with row.turn(next_size()):
                turns, most = turns + 1, max(most, len(row._by_size))
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(owner(lambda: next(sizes)))
            tasks.create_task(owner(lambda: 1))
    assert most < 40, "six owners never had more than five that wait"
