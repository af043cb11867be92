"""The garbage collector looks at everything in quiet moments only."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

from sds.operations.garbage_collection import (
    LONGEST_SECONDS,
    PAUSE_SECONDS,
    QUIET_STREAMS,
    collect_when_quiet,
    only_when_told,
)
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    import pytest


async def test_it_waits_for_a_quiet_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    collected: list[int] = []
    streams = QUIET_STREAMS
    monkeypatch.setattr(gc, "collect", lambda: collected.append(streams))
    clock = FakeClock()
    task = asyncio.create_task(collect_when_quiet(lambda: streams, clock))
    await clock.advance(PAUSE_SECONDS * 2)
    assert collected == []
    streams = 3
    await clock.advance(PAUSE_SECONDS)
    assert collected == [3]
    streams = QUIET_STREAMS + 1
    await clock.advance(LONGEST_SECONDS - PAUSE_SECONDS)
    assert collected == [3]
    await clock.advance(PAUSE_SECONDS)
    assert collected == [3, streams]
    task.cancel()


def test_the_interpreter_does_not_choose_the_moment() -> None:
    before = gc.get_threshold()
    try:
        only_when_told()
        young, middle, old = gc.get_threshold()
        assert (young, middle) == before[:2]
        assert old > 1_000_000
    finally:
        gc.set_threshold(*before)
