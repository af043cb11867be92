"""Whose turn it is: what waits among strangers does not stay there once its owner is known."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from sds.transport.budget import Budgets, Owner
from sds.transport.owner_lines import RUNS_FOR
from sds.transport.turns import TURN_SECONDS, Turns


async def turns_of_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_waits_among_strangers_goes_on_once_its_owner_is_recognised() -> None:
    loop = asyncio.get_running_loop()
    budgets, turns = Budgets(), Turns(loop)
    victim, strange = budgets.owner("pod a"), budgets.owner("uid 1")
    budgets.strangers.processor.use(100.0, loop.time())  # for a quarter of an hour nothing is left
    done: list[str] = []

    def job(name: str) -> bool:
        done.append(name)
        return False

    turns.run(strange, "first", lambda: job("strange"))
    turns.run(victim, "second", lambda: job("victim"))
    turns.queue(victim, "second", lambda: job("and more"))
    await turns_of_the_loop()
    assert not done
    victim.recognise()
    turns.move("second", budgets.strangers, victim)
    await turns_of_the_loop()
    assert done == ["victim", "and more"]


async def test_who_has_nothing_left_that_waits_has_its_next_turn_all_the_same() -> None:
    loop = asyncio.get_running_loop()
    budgets, turns = Budgets(), Turns(loop)
    victim, strange = budgets.owner("pod a"), budgets.owner("uid 1")
    done: list[int] = []

    def job(number: int) -> bool:
        done.append(number)
        return False

    turns.queue(victim, "a", lambda: job(1))
    victim.recognise()
    turns.move("a", budgets.strangers, victim)
    turns.move("a", budgets.strangers, victim)  # nothing is there
    turns.queue(strange, "b", lambda: job(2))
    await turns_of_the_loop()
    turns.queue(strange, "b", lambda: job(3))
    await turns_of_the_loop()
    assert sorted(done) == [1, 2, 3]
    assert not turns._jobs
    assert not turns._row


async def test_jobs_log_for_nobody_whose_handler_happened_to_run_before() -> None:
    """Else an owner that used up its log lines would hide what is said of others."""
    budgets, turns = Budgets(), Turns(asyncio.get_running_loop())
    noisy, other = budgets.owner("pod a"), budgets.owner("pod b")
    seen: list[Owner | None] = []

    def job() -> bool:
        seen.append(RUNS_FOR.get())
        return len(seen) < 2

    RUNS_FOR.set(noisy)
    turns.queue(other, "b", job)
    await turns_of_the_loop()
    assert seen == [None, None]


async def test_steps_that_are_longer_than_a_turn_leave_time_for_reading() -> None:
    """As where an authority signs: else it would read one client between two long steps."""
    loop = asyncio.get_running_loop()
    budgets, turns = Budgets(), Turns(loop)
    busy, others = budgets.owner("pod a"), [budgets.owner(f"pod {n}") for n in range(40)]
    for one in (busy, *others):
        one.recognise()
    now = 0.0
    turns._clock = lambda: now
    done: list[int] = []

    def job(number: int) -> bool:
        nonlocal now
        now += 0.0001
        done.append(number)
        return False

    for number, owner in enumerate(others):
        turns.queue(owner, number, lambda number=number: job(number))  # type: ignore[misc]
    counts = [0]
    for _ in range(3):
        turns.step_begins()
        now += 2 * TURN_SECONDS
        turns.step_ends(busy)
        await asyncio.sleep(0)
        counts.append(len(done))
    # About as many as take JOBS_SECONDS, and no more.
    assert all(10 <= after - before <= 11 for before, after in pairwise(counts)), counts
    # Of handlers, which take long, one is woken at a time.
    woken: list[asyncio.Future[None]] = [loop.create_future() for _ in range(5)]
    while len(done) < len(others):
        await asyncio.sleep(0)
    for future in woken:
        turns.later(busy, "busy", future)
    turns.step_begins()
    now += 2 * TURN_SECONDS
    turns.step_ends(busy)
    await asyncio.sleep(0)
    assert sum(future.done() for future in woken) == 1
