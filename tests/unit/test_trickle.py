"""A few callbacks in each turn of the event loop."""

from __future__ import annotations

import asyncio
import functools

from sds import faults
from sds.trickle import Trickle
from tests.support.turn_counter import turns


async def test_callbacks_are_called_in_order_a_few_in_each_turn() -> None:
    called: list[int] = []
    trickle = Trickle("listener", 3)

    def call(number: int) -> None:
        counter.happened()
        called.append(number)

    async with turns() as counter:
        trickle.add_all(functools.partial(call, number) for number in range(10))
        assert not called
        trickle.add(functools.partial(call, 10))
        while len(called) < 11:
            await asyncio.sleep(0)
    assert called == list(range(11))
    assert counter.most == 3


async def test_one_that_fails_keeps_no_other_from_its_turn() -> None:
    called: list[int] = []
    before = faults.counts()["listener"]
    trickle = Trickle("listener", 2)
    trickle.add_all([lambda: 1 // 0, lambda: called.append(1), lambda: called.append(2)])
    while len(called) < 2:
        await asyncio.sleep(0)
    assert faults.counts()["listener"] == before + 1


async def test_what_waits_is_called_no_more_after_the_end() -> None:
    called: list[int] = []
    trickle = Trickle("listener", 1)
    trickle.add(lambda: called.append(1))
    trickle.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert not called
