"""No client holds the event loop: processor time of its thread in each turn, under attack."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from sds.operations.garbage_collection import only_when_told
from tests.support.cost import reference_seconds
from tests.support.hostile import ATTACKS, attack
from tests.support.loop_watch import loop_watch
from tests.support.serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST = 3.0
"""Times what a fixed piece of Python takes on this machine at this time, which is about 10 ms on a
quiet one (``reference_seconds``)."""
ROUNDS = 4
"""The work of a turn is always the same, but a host that takes the processor away adds to one of
thousands of turns. So the least of some rounds counts."""


@pytest.fixture
def _collected() -> Iterator[None]:
    """The collector as in the agent; its work on what other tests left is not the transport's."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    only_when_told()
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("_collected")
@pytest.mark.parametrize("name", ATTACKS)
async def test_no_attack_holds_the_loop(name: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        await asyncio.to_thread(attack, "reconnecting", at.socket)  # what is loaded at first
        held = float("inf")
        for _ in range(ROUNDS):
            reference = reference_seconds()
            with loop_watch() as watch:
                await asyncio.to_thread(attack, name, at.socket)
                await asyncio.sleep(0.2)
            assert watch.turns > 3
            held = min(held, watch.held / reference)
            if held < MOST:
                break
        assert held < MOST, f"{held:.1f} times the reference in one turn"
