"""What a real gRPC client makes of a connection that is turned away."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import grpc
import pytest

from sds.transport.accepting import turn_away
from tests.support.front_door import ask
from tests.support.node import short_folder


async def turn_everybody_away(listener: socket.socket) -> None:
    """Once they have said something: then a client is in the middle of its greeting."""
    loop = asyncio.get_running_loop()
    while True:
        accepted, _ = await loop.sock_accept(listener)
        await loop.sock_recv(accepted, 1)
        turn_away(accepted, "no room")


async def test_its_calls_fail_and_it_waits_before_it_comes_again() -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "sds.sock"
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0)
        turning_away = asyncio.create_task(turn_everybody_away(listener))
        try:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(path)
        finally:
            turning_away.cancel()
        # Not DEADLINE_EXCEEDED, after attempts without end.
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
