"""Whose request is decided next."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from sds.ca.issuing_turns import IssuingTurns

if TYPE_CHECKING:
    from collections.abc import Sequence


async def order(turns: IssuingTurns, *asked: tuple[str, str, str]) -> Sequence[str]:
    """Who had its turn, in this order: machine, address and name of each that asks."""
    done: list[str] = []

    async def ask(machine: str, address: str, name: str) -> None:
        async with turns.turn(machine, address):
            await asyncio.sleep(0)
            done.append(name)

    async with asyncio.TaskGroup() as group:
        for one in asked:
            group.create_task(ask(*one))
    return done


async def test_machines_take_turns_however_much_each_asks_for() -> None:
    greedy = [("chip 1", "192.0.2.1", f"greedy {number}") for number in range(50)]
    found = await order(IssuingTurns(1), *greedy, ("chip 2", "192.0.2.1", "other"))
    assert found.index("other") == 1 + 1
    assert [name for name in found if name != "other"] == [name for _, _, name in greedy]


@pytest.mark.parametrize("first", ["strangers", "agents"])
async def test_those_that_have_proven_nothing_have_every_second_turn(first: str) -> None:
    strangers = [("", f"192.0.2.{number}", f"stranger {number}") for number in range(50)]
    agents = [(f"chip {number}", "192.0.2.7", f"agent {number}") for number in range(50)]
    both = (strangers, agents) if first == "strangers" else (agents, strangers)
    found = await order(IssuingTurns(1), *both[0], *both[1])
    for some in both:
        assert max(found.index(name) for _, _, name in some[:10]) <= 1 + 2 * 10


async def test_addresses_that_have_proven_nothing_take_turns() -> None:
    flood = [("", "192.0.2.1", f"flood {number}") for number in range(50)]
    found = await order(IssuingTurns(1), *flood, ("", "192.0.2.2", "agent"))
    assert found.index("agent") <= 1 + 2


async def test_as_many_turns_are_held_as_there_are_and_all_come_back() -> None:
    turns = IssuingTurns(4)
    held = most = 0

    async def ask(number: int) -> None:
        nonlocal held, most
        async with turns.turn(f"chip {number % 3}", ""):
            held += 1
            most = max(most, held)
            await asyncio.sleep(0)
            held -= 1

    tasks = [asyncio.create_task(ask(number)) for number in range(40)]
    await asyncio.sleep(0)
    for task in tasks[4:30:3]:  # callers that leave, some as their turn comes
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 4
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(1):
            await asyncio.gather(*(ask(number) for number in range(8)))
            assert held == 0
            return
    raise AssertionError("a turn was lost")
