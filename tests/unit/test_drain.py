"""How long the end of an agent may take: one time for all its sockets."""

from __future__ import annotations

import asyncio

from sds.agent.drain import DrainTime
from tests.support.clock import FakeClock


async def test_all_sockets_share_one_time() -> None:
    clock = FakeClock()
    drain = DrainTime(5.0, clock=clock)
    await clock.advance(60)  # the time begins when the first one stops
    assert drain.left() == 5.0
    await clock.advance(3)
    assert drain.left() == 2.0
    await clock.advance(3)
    assert drain.left() == 0.0


async def test_who_is_cancelled_has_none_left() -> None:
    drain = DrainTime(5.0, clock=FakeClock())
    found = []

    async def ending() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            found.append(drain.left())

    task = asyncio.create_task(ending())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert found == [0.0]
    assert drain.left() == 5.0
