"""What a server that stops does about calls that no handler has begun."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.transport.server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.transport.call import Call

METHOD = "/test.Test/Ask"


class Gate:
    """Lets a call pass when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.opens = asyncio.Event()

    async def __call__(self, _: Call) -> None:
        self.asked.set()
        await self.opens.wait()


class Serving:
    def __init__(self, path: Path) -> None:
        self.gate = Gate()
        self.begun, self.may_answer = asyncio.Event(), asyncio.Event()
        methods: dict[str, Any] = {"Ask": grpc.unary_unary_rpc_method_handler(self._answer)}
        self.server = Server([grpc.method_handlers_generic_handler("test.Test", methods)])
        self.server.gate = self.gate
        self.path = path

    async def _answer(self, request: bytes, _: Any) -> bytes:
        self.begun.set()
        await self.may_answer.wait()
        return request

    @contextlib.asynccontextmanager
    async def ask(self) -> AsyncIterator[asyncio.Future[bytes]]:
        async with grpc.aio.insecure_channel(f"unix:{self.path}") as channel:
            asked = asyncio.ensure_future(_ask(channel))
            yield asked
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)


async def _ask(channel: grpc.aio.Channel) -> bytes:
    method: Any = channel.unary_unary(METHOD)
    answer: bytes = await method(b"hello")
    return answer


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serving]:
    made = Serving(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(made.path))
    listener.listen()
    await made.server.listen(listener)
    yield made
    await made.server.stop(0)


async def test_a_call_that_waits_for_the_gate_does_not_hold_up_the_stop(serving: Serving) -> None:
    """Before, one caller that no rule matches kept an agent that stopped for all of its time."""
    async with serving.ask() as asked:
        await serving.gate.asked.wait()
        async with asyncio.timeout(10):
            await serving.server.stop(3600)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asked
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_call_with_a_handler_may_end_while_the_server_stops(serving: Serving) -> None:
    serving.gate.opens.set()
    async with serving.ask() as asked:
        await serving.begun.wait()
        stopping = asyncio.create_task(serving.server.stop(3600))
        await asyncio.sleep(0)
        serving.may_answer.set()
        assert await asked == b"hello"
        await stopping
