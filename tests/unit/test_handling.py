"""A handler that runs in the turns of its owner: what its end leaves in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.transport.handling import serve_in_turns

if TYPE_CHECKING:
    from collections.abc import Iterator


class _OverTurns:
    """Turns that are always over, so every step waits."""

    is_over = True

    def step_begins(self) -> None:
        """Measure nothing."""

    def step_ends(self, _owner: object) -> None:
        """Charge nobody."""


class _Call:
    """A call whose turn comes when the test says so."""

    owner = None
    path = "/test"

    def __init__(self) -> None:
        self.waits: asyncio.Future[None] | None = None

    async def turn(self) -> None:
        self.waits = asyncio.get_running_loop().create_future()
        await self.waits

    def finish(self, code: grpc.StatusCode, details: str = "") -> None:
        """Send no status."""

    async def its_turn(self) -> None:
        """Let the handler take one step."""
        while self.waits is None:
            await asyncio.sleep(0)
        waits, self.waits = self.waits, None
        waits.set_result(None)


class _Key:
    """What a handler is about to write."""


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.usefixtures("_no_collector")
async def test_a_handler_that_is_cancelled_while_it_waits_for_its_turn_leaves_nothing() -> None:
    keys: list[weakref.ref[_Key]] = []

    async def behave(_requests: Any, _context: Any) -> None:
        key = _Key()
        keys.append(weakref.ref(key))
        await asyncio.sleep(0)
        await asyncio.Event().wait()

    call: Any = _Call()
    turns: Any = _OverTurns()
    handler: Any = grpc.stream_stream_rpc_method_handler(behave)
    task = asyncio.create_task(serve_in_turns(call, handler, None, turns))
    await call.its_turn()
    while (before := call.waits) is None:  # the next step is due, and waits for its turn
        await asyncio.sleep(0)
    task.cancel()
    while call.waits is before:  # the handler is told in its turn, too
        await asyncio.sleep(0)
    await call.its_turn()
    await asyncio.wait([task])
    del task
    await asyncio.sleep(0)
    assert keys
    assert keys[0]() is None
