"""The queue for VCEKs: each owner in turn, within a bound."""

from __future__ import annotations

import asyncio

from sds.attestation.collateral.wanted_by_owners import MOST, WantedByOwners


async def taken(wanted: WantedByOwners) -> list[str]:
    return [await wanted.next() for _ in range(len(wanted))]


async def test_owners_take_turns_and_each_keeps_its_order() -> None:
    wanted = WantedByOwners()
    for thing in ("a1", "a2", "a3", "a1"):
        wanted.add(thing, "a")
    for thing in ("b1", "b2"):
        wanted.add(thing, "b")
    wanted.add("c1", "c")
    assert await taken(wanted) == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_what_several_want_is_given_once_in_the_first_turn_of_any() -> None:
    wanted = WantedByOwners()
    for thing in ("a1", "a2", "both"):
        wanted.add(thing, "a")
    wanted.add("both", "b")
    assert len(wanted) == 4
    assert [await wanted.next() for _ in range(3)] == ["a1", "both", "a2"]
    assert len(wanted) == 0


async def test_who_wants_the_most_gives_way() -> None:
    wanted = WantedByOwners()
    for number in range(3 * MOST):
        wanted.add(f"a{number}", "a")
    assert len(wanted) == MOST
    for number in range(3 * MOST):
        wanted.add(f"b{number}", "b")
    assert len(wanted) == MOST
    found = await taken(wanted)
    assert found[:4] == ["a0", "b0", "a1", "b1"]
    assert sum(one.startswith("a") for one in found) in {MOST // 2, MOST // 2 + 1}
    for number in range(3 * MOST):
        wanted.add("one", f"owner {number}")
    assert len(wanted) == MOST


async def test_who_waits_is_woken() -> None:
    wanted = WantedByOwners()
    waiting = asyncio.create_task(wanted.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    wanted.add("x", "a")
    assert await waiting == "x"
