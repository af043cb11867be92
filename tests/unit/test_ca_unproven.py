"""Callers who have proven nothing share what there is for them fairly."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass

import pytest

from sds.ca.unproven_streams import Crowd, ReadingTurns
from sds.transport.addresses import owner_of
from tests.support.virtual_time import in_virtual_time

LEASE = 0.05


@dataclass(eq=False)
class Caller:
    owner: str = "192.0.2.1"
    lease: float = LEASE
    ended: bool = False
    connection: object = None

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    ("peer", "owner"),
    [
        ("ipv4:192.0.2.1:4711", "192.0.2.1"),
        ("ipv6:%5B2001:db8:1:2:3::1%5D:4711", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::9]:1", "2001:db8:1:2::/64"),
        ("ipv6:%5B::ffff:192.0.2.1%5D:4711", "192.0.2.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:4711", "fe80::/64"),
        ("unix:/run/x", "unix"),
        ("", ""),
    ],
)
def test_an_owner_is_an_address_or_a_network(peer: str, owner: str) -> None:
    assert owner_of(peer) == owner


def test_the_oldest_of_the_owner_with_the_most_makes_room() -> None:
    crowd: Crowd[Caller] = Crowd(4)
    honest = Caller("192.0.2.9")
    flood = [Caller() for _ in range(6)]
    crowd.join(honest)
    for caller in flood:
        crowd.join(caller)
    assert len(crowd) == 4
    assert [caller.ended for caller in flood] == [True, True, True, False, False, False]
    assert not honest.ended
    assert crowd.leave(honest)
    assert not crowd.leave(honest)
    assert crowd.make_room()
    assert flood[3].ended


@in_virtual_time
async def test_few_are_read_at_once_and_a_silent_one_gives_way_to_one_that_waits() -> None:
    turns = ReadingTurns(2)
    reading: list[Caller] = []

    async def read(caller: Caller) -> None:
        async with turns.turn(caller):
            reading.append(caller)
            assert len(reading) <= 2
            while not caller.ended:
                await asyncio.sleep(0.001)
            reading.remove(caller)

    silent = [Caller() for _ in range(10)]
    async with asyncio.TaskGroup() as tasks:
        for caller in silent:
            tasks.create_task(read(caller))
        await asyncio.sleep(LEASE / 2)
        assert len(reading) == 2
        newest = Caller()
        tasks.create_task(read(newest))
        async with asyncio.timeout(1):
            while newest not in reading:
                await asyncio.sleep(0.001)
        # The newest was next, although nine had waited for longer.
        assert sum(caller.ended for caller in silent) <= 2
        async with asyncio.timeout(5):
            while sum(caller.ended for caller in [*silent, newest]) < 9:
                await asyncio.sleep(0.01)
        for caller in [*silent, newest]:
            caller.end()


@in_virtual_time
async def test_nobody_is_told_to_go_while_nobody_waits() -> None:
    turns = ReadingTurns(2)
    first, second = Caller(), Caller()
    async with turns.turn(first), turns.turn(second):
        await asyncio.sleep(0.2)
    assert not first.ended
    assert not second.ended


async def reading(turns: ReadingTurns, order: list[Caller], caller: Caller) -> None:
    """The caller waits for its turn and then reads until somebody ends it."""
    async with turns.turn(caller):
        order.append(caller)
        while not caller.ended:
            await asyncio.sleep(0.001)


@in_virtual_time
async def test_the_owner_that_reads_least_is_next_and_the_one_that_reads_most_gives_way() -> None:
    turns = ReadingTurns(2)
    greedy = [Caller("192.0.2.66") for _ in range(5)]
    honest = Caller("192.0.2.9")
    order: list[Caller] = []
    read = functools.partial(reading, turns, order)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(read(greedy[0]))
        tasks.create_task(read(greedy[1]))
        await asyncio.sleep(0.01)
        tasks.create_task(read(honest))
        for caller in greedy[2:]:
            tasks.create_task(read(caller))
        async with asyncio.timeout(1):
            while honest not in order:
                await asyncio.sleep(0.001)
        assert order.index(honest) == 2
        assert greedy[0].ended
        await asyncio.sleep(0.3)
        assert not honest.ended  # the others give way to each other
        for caller in [honest, *greedy]:
            caller.end()


@in_virtual_time
async def test_a_connection_with_streams_without_end_holds_up_no_other_of_its_address() -> None:
    """The newest stream is read first, and one of another caller was never the newest again."""
    turns = ReadingTurns(2)
    greedy = [Caller(connection="greedy") for _ in range(20)]
    honest = Caller(connection="honest")
    order: list[Caller] = []
    read = functools.partial(reading, turns, order)

    async with asyncio.TaskGroup() as tasks:
        for caller in [greedy[0], greedy[1], honest, *greedy[2:]]:
            tasks.create_task(read(caller))
        async with asyncio.timeout(1):
            while honest not in order:
                await asyncio.sleep(0.001)
        assert order.index(honest) == 2
        for caller in [honest, *greedy]:
            caller.end()


def test_of_one_address_the_connection_with_the_most_streams_makes_room() -> None:
    crowd: Crowd[Caller] = Crowd(4)
    honest = Caller(connection="honest")
    greedy = [Caller(connection="greedy") for _ in range(10)]
    for caller in [honest, *greedy]:
        crowd.join(caller)
    assert honest in crowd
    assert [caller.ended for caller in greedy] == [True] * 7 + [False] * 3
    assert len(crowd) == 4


@in_virtual_time
async def test_connections_without_end_hold_up_no_other_of_their_address_for_long() -> None:
    turns = ReadingTurns(1)
    honest = Caller(connection="honest")
    order: list[Caller] = []

    async def read(caller: Caller) -> None:
        async with turns.turn(caller):
            order.append(caller)

    async with asyncio.TaskGroup() as tasks, turns.turn(Caller(connection="first")):
        tasks.create_task(read(honest))
        for number in range(20):
            tasks.create_task(read(Caller(connection=number)))
        await asyncio.sleep(0)
    assert order.index(honest) <= 1


@in_virtual_time
async def test_a_caller_that_leaves_while_it_waits_costs_nobody_a_turn() -> None:
    turns = ReadingTurns(1)
    first, gone, last = Caller(), Caller(), Caller()

    async def read(caller: Caller) -> None:
        async with turns.turn(caller):
            pass

    async with turns.turn(first):
        leaving = asyncio.create_task(read(gone))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        waiting = asyncio.create_task(read(last))
        await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await waiting
        await read(Caller())


@in_virtual_time
async def test_who_is_told_to_go_in_the_moment_of_its_turn_counts_no_longer() -> None:
    """Or one silent stream after the other would keep its turn for good while others wait."""
    turns = ReadingTurns(1)

    async def read(caller: Caller) -> None:
        async with turns.turn(caller):
            await asyncio.Event().wait()

    class Impatient(Caller):
        """Its lease is over when its turn begins, as where the event loop stands still then."""

        def end(self) -> None:
            super().end()
            impatient.cancel()

    async with asyncio.TaskGroup() as tasks:
        silent = Caller()
        first, oldest = tasks.create_task(read(silent)), tasks.create_task(read(Caller()))
        await asyncio.sleep(0)
        impatient = tasks.create_task(read(told := Impatient(lease=0.0)))
        await asyncio.sleep(0)
        first.cancel()
        # Its lease ends before it runs: the turn passes on, and then the timer calls.
        asyncio.get_running_loop().call_soon(turns._again)
        await asyncio.sleep(LEASE / 2)
        assert told.ended
        newest = tasks.create_task(read(Caller()))
        await asyncio.sleep(LEASE)
        assert len(turns._reading) == 1
        (reading,) = turns._reading
        assert reading.ended  # type: ignore[attr-defined]  # it had its lease, and another waits
        for task in (oldest, newest):
            task.cancel()
