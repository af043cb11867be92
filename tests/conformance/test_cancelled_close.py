"""A stream that is cancelled while it closes lets go of everything all the same."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from envoy.service.discovery.v3 import discovery_pb2

from sds.serving.observer import Method
from tests.support.serving import serving, svid

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path


class SlowWay:
    """A way out whose transport takes nothing more, and which takes a moment to be cancelled."""

    turn_is_long = False

    def __init__(self) -> None:
        self.written = 0
        self.waiting = asyncio.Event()

    async def turn(self) -> None:
        await asyncio.sleep(0)

    def soon(self, job: Callable[[], bool]) -> None:
        asyncio.get_running_loop().call_soon(job)

    def start(self, work: Callable[[], Coroutine[Any, None, None]]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work())

    def send(self, message: bytes) -> bool:
        return not message

    async def ready(self) -> None:
        self.waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(10):
                await asyncio.sleep(0)

    async def write(self, message: bytes) -> None:
        self.written += len(message)

    async def quiet(self) -> None:
        """Nothing is written in the background."""


async def test_no_key_counts_as_held_afterwards(tmp_path: Path) -> None:
    way = SlowWay()
    async with serving(tmp_path) as at:
        method = Method.STREAM
        stream = at.service.open_stream(at.entitlement, method, way, peer="", owner="uid 0")
        request = discovery_pb2.DiscoveryRequest(resource_names=["default"])
        await stream.take(request.SerializeToString(), 0.0)
        assert way.written
        assert at.store.held_keys()
        at.store.put_svid(svid())  # the push of it waits in a task of its own
        await way.waiting.wait()
        closing = asyncio.create_task(stream.close())
        await asyncio.sleep(0)
        closing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await closing
        assert not at.store.held_keys()
        assert not at.store.subscription_count()
        at.service.close_stream(stream)
