"""No client holds the event loop: processor time of its thread between two turns, under attack."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest

from sds.operations.collector import only_when_told
from tests.support.hostile import ATTACKS, attack
from tests.support.loop_watch import loop_watch
from tests.support.serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Processor time is counted: what traces lines for coverage would count too.
pytestmark = pytest.mark.no_cover

MOST_SECONDS = 0.050
"""About 10 ms on a quiet machine; a busy one takes a multiple of that for the same work."""
MOST_SECONDS_FOR_NAMES = 0.100
"""One message with all the names that a stream may have is parsed and answered in one turn: 22 to
31 ms on a quiet machine."""


@pytest.fixture
def _collected() -> Iterator[None]:
    """The collector as in the agent; its work on what other tests left is not the transport's."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    only_when_told()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@pytest.mark.usefixtures("_collected")
@pytest.mark.parametrize("name", ATTACKS)
async def test_no_attack_holds_the_loop(name: str, tmp_path: Path) -> None:
    async with serving(tmp_path) as at:
        await asyncio.to_thread(attack, "reconnecting", at.socket)  # what is loaded at first
        with loop_watch() as watch:
            await asyncio.to_thread(attack, name, at.socket)
            await asyncio.sleep(0.2)
        assert watch.turns > 20
        most = MOST_SECONDS_FOR_NAMES if name == "names" else MOST_SECONDS
        assert watch.held < most, f"{watch.held * 1e3:.1f} ms between two turns"
