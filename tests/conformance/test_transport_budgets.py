"""Owners of connections on a real socket: who uses too much is told so, and costs nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

import grpc
import pytest

from sds import faults
from sds.transport.budget import CONNECTION_BYTES, STREAM_BYTES, Budgets
from sds.transport.budget_sizes import Share
from sds.transport.connection import Connection
from sds.transport.connection_calls import Calls
from sds.transport.frames import GOAWAY, HEADERS, PREFACE, SETTINGS, frame
from sds.transport.server import Server
from sds.unix_sockets import listening
from tests.support.door_client import headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

Code = grpc.StatusCode
GREETING = PREFACE + frame(SETTINGS, 0, 0)
FLOOD = b"/t.T/Flood"


async def reverse(request: bytes, _context: Any) -> bytes:
    return request[::-1]


async def hold(requests: Any, _context: Any) -> None:
    async for _ in requests:
        pass


async def flood(_request: bytes, context: Any) -> None:
    for _ in range(100):
        await context.write(bytes(100_000))


def handler() -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        "t.T",
        {
            "Reverse": grpc.unary_unary_rpc_method_handler(reverse),
            "Hold": grpc.stream_stream_rpc_method_handler(hold),
            "Flood": grpc.unary_stream_rpc_method_handler(flood),
        },
    )


@contextlib.asynccontextmanager
async def running(folder: Path, share: Share) -> AsyncIterator[tuple[Path, Server]]:
    server = Server([handler()], budgets=Budgets(share))
    path = folder / "t.sock"
    names = iter(("uid 1", "uid 2"))
    # Who connects first owns the first connections; the last one is somebody else's.
    await server.listen(listening(path, 0o600), owner_of=lambda _: next(names, "uid 1"))
    try:
        yield path, server
    finally:
        await server.stop(0)


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        yield client


async def until_closed(client: socket.socket) -> bytes:
    """All that is said until the connection is closed."""

    def read() -> bytes:
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := client.recv(65536):
                heard += chunk
        return heard

    return await asyncio.to_thread(read)


async def reverses(path: Path) -> bool:
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        method: Any = channel.unary_unary("/t.T/Reverse")
        answer: bytes = await method(b"ab")
        return answer == b"ba"


async def test_too_many_connections_are_told_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="sds.transport")
    async with running(tmp_path, Share(connections=1)) as (path, server):
        with connected(path) as first:
            first.sendall(GREETING)
            assert await reverses(path)  # the second owner's
            for _ in range(20):
                with connected(path) as refused:
                    heard = await until_closed(refused)
                    assert b"uid 1 has more than 1 connections" in heard
            assert server.budgets.exceeded["uid 1"]["connections"] == 20
        lines = [one for one in caplog.records if one.message == "an owner exceeds its budget"]
        assert len(lines) == 1


@pytest.mark.parametrize("broken", [(Connection, "proceed"), (Calls, "end_all")])
async def test_a_fault_in_the_work_for_a_connection_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: tuple[type, str]
) -> None:
    """It neither stays half alive nor keeps its owner's budget."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    before = faults.counts()["connection"]
    async with running(tmp_path, Share()) as (path, server):
        with monkeypatch.context() as patch, connected(path) as client:
            patch.setattr(*broken, fail)
            client.sendall(GREETING)
            client.shutdown(socket.SHUT_WR)
            await until_closed(client)
            await asyncio.sleep(0)
        assert server.budgets.all.connections == 0
        assert faults.counts()["connection"] > before
        assert await reverses(path)


async def test_too_many_streams_are_refused_with_a_text(tmp_path: Path) -> None:
    async with running(tmp_path, Share(streams=3)) as (path, _):
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
            calls: list[Any] = [channel.stream_stream("/t.T/Hold")() for _ in range(3)]
            for call in calls:
                await call.write(b"x")
            await asyncio.sleep(0.1)
            method: Any = channel.unary_unary("/t.T/Reverse")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(b"ab")
            assert caught.value.code() == Code.RESOURCE_EXHAUSTED
            assert "more than 3 streams" in (caught.value.details() or "")
            for call in calls:
                call.cancel()


class Answer:
    """A response that is no bytes yet."""

    alive: ClassVar[weakref.WeakSet[Answer]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


async def answer_all(requests: Any, _context: Any) -> AsyncIterator[Answer]:
    async for _ in requests:
        yield Answer()


async def answer_one(_request: Any, _context: Any) -> Answer:
    return Answer()


WHOLE = b"w" * 1000


async def write_all(_request: Any, context: Any) -> None:
    await context.write(Answer())


def serialized(_: Answer) -> bytes:
    return bytes(1000)


@pytest.mark.parametrize("method", [b"/t.A/All", b"/t.A/One", b"/t.A/Written"])
async def test_a_response_is_not_kept_beside_its_bytes(tmp_path: Path, method: bytes) -> None:
    """What waits for a shut window is counted by its bytes; the message itself is gone."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "All": grpc.stream_stream_rpc_method_handler(answer_all, response_serializer=serialized),
        "One": grpc.unary_unary_rpc_method_handler(answer_one, response_serializer=serialized),
        "Written": grpc.unary_stream_rpc_method_handler(write_all, response_serializer=serialized),
    }
    async with running(tmp_path, Share()) as (path, server):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.A", handlers),))
        with connected(path) as client:
            shut = frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0")
            asked = frame(HEADERS, 4, 1, headers(method)) + frame(0, 1, 1, bytes(5))
            client.sendall(GREETING + shut + asked)
            owner = server.budgets.owner("uid 1")
            while owner.held < CONNECTION_BYTES + STREAM_BYTES + 1000:
                await asyncio.sleep(0.01)
            assert not list(Answer.alive)


async def all_bytes(requests: Any, _context: Any) -> AsyncIterator[bytes]:
    async for _ in requests:
        yield WHOLE


async def one_bytes(_request: Any, _context: Any) -> bytes:
    return WHOLE


async def write_bytes(_request: Any, context: Any) -> None:
    await context.write(WHOLE)


@pytest.mark.parametrize("method", [b"/t.B/All", b"/t.B/One", b"/t.B/Written"])
async def test_a_message_whose_last_byte_waits_is_not_kept(tmp_path: Path, method: bytes) -> None:
    """A byte is counted then. The handler that waits has no other reference to the message."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "All": grpc.stream_stream_rpc_method_handler(all_bytes),
        "One": grpc.unary_unary_rpc_method_handler(one_bytes),
        "Written": grpc.unary_stream_rpc_method_handler(write_bytes),
    }
    async with running(tmp_path, Share()) as (path, server):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.B", handlers),))
        before = sys.getrefcount(WHOLE)
        with connected(path) as client:
            client.settimeout(5)
            narrow = frame(SETTINGS, 0, 0, b"\0\x04" + (len(WHOLE) + 4).to_bytes(4, "big"))
            asked = frame(HEADERS, 4, 1, headers(method)) + frame(0, 1, 1, bytes(5))
            client.sendall(GREETING + narrow + asked)
            seen = b""
            while seen.count(b"w") < len(WHOLE) - 1:
                seen += await asyncio.to_thread(client.recv, 65_536)
            assert sys.getrefcount(WHOLE) == before
            client.sendall(frame(8, 0, 1, (1).to_bytes(4, "big")))
            while seen.count(b"w") < len(WHOLE):
                seen += await asyncio.to_thread(client.recv, 65_536)


async def test_the_head_of_a_request_counts_while_its_call_lives(tmp_path: Path) -> None:
    """Fields by index take an octet each on the wire, and 140 bytes here."""
    async with running(tmp_path, Share()) as (path, server):
        with connected(path) as client:
            many = headers(b"/t.T/Hold") + b"\x90" * 200
            client.sendall(GREETING + frame(HEADERS, 4, 1, many))
            owner = server.budgets.owner("uid 1")
            while owner.held < CONNECTION_BYTES + STREAM_BYTES + 200 * 144:
                await asyncio.sleep(0.01)
            client.sendall(frame(3, 0, 1, bytes(4)))
            while owner.held >= CONNECTION_BYTES + STREAM_BYTES + 200 * 144:
                await asyncio.sleep(0.01)


class Question:
    """A request that was parsed."""

    alive: ClassVar[weakref.WeakSet[Question]] = weakref.WeakSet()

    def __init__(self, data: bytes) -> None:
        self.alive.add(self)
        self.size = len(data)


async def test_a_request_that_its_handler_let_go_of_is_gone(tmp_path: Path) -> None:
    """Also where the handler goes on for hours, as those that tell of changes do."""
    asked = asyncio.Event()

    async def watch(request: Question, context: Any) -> None:
        del request
        asked.set()
        await asyncio.Event().wait()

    method: Any = grpc.unary_stream_rpc_method_handler(watch, request_deserializer=Question)
    async with running(tmp_path, Share()) as (path, server):
        handlers = {"Watch": method}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.W", handlers),))
        with connected(path) as client:
            request = frame(0, 1, 1, b"\0\0\0\0\1x")
            client.sendall(GREETING + frame(HEADERS, 4, 1, headers(b"/t.W/Watch")) + request)
            await asked.wait()
            assert not list(Question.alive)


async def test_a_request_counts_until_its_handler_asks_for_the_next(tmp_path: Path) -> None:
    """A handler that waits for a shut window still has the request that it answers."""

    async def echo(requests: Any, context: Any) -> None:
        async for request in requests:
            await context.write(request[:1000])

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Echo": grpc.stream_stream_rpc_method_handler(echo)
    }
    async with running(tmp_path, Share()) as (path, server):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.A", handlers),))
        with connected(path) as client:
            shut = frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0")
            body = b"\0" + (16_000).to_bytes(4, "big") + bytes(16_000)
            asked = frame(HEADERS, 4, 1, headers(b"/t.A/Echo")) + frame(0, 0, 1, body)
            client.sendall(GREETING + shut + asked)
            owner = server.budgets.owner("uid 1")
            answer = CONNECTION_BYTES + STREAM_BYTES + 1000
            while owner.held < answer + 16_000:
                await asyncio.sleep(0.01)
            before = owner.held
            wide = frame(SETTINGS, 0, 0, b"\0\x04\0\1\0\0")
            client.sendall(wide)
            while owner.held > before - 17_000:  # it asks for the next
                await asyncio.sleep(0.01)


async def test_answers_behind_shut_windows_are_bounded(tmp_path: Path) -> None:
    """Each call has one answer under way; too many of them are refused, not kept."""
    share = Share(held_bytes=3_000_000)
    async with running(tmp_path, share) as (path, server):
        with connected(path) as client:
            shut = frame(SETTINGS, 0, 0, b"\0\x04\0\0\0\0")
            asked = b"".join(
                frame(HEADERS, 4, number, headers(FLOOD)) + frame(0, 1, number, bytes(5))
                for number in range(1, 401, 2)
            )
            await asyncio.to_thread(client.sendall, GREETING + shut + asked)
            heard = b""
            while b"MiB of memory" not in heard:
                heard += await asyncio.to_thread(client.recv, 65536)
            (owner,) = server.budgets.owners.values()
            assert owner.held <= share.held_bytes + 200_000


async def test_refused_calls_without_end_close_the_connection(tmp_path: Path) -> None:
    async with running(tmp_path, Share(refusal_burst=10.0, refusals_per_second=0.1)) as (path, _):
        with connected(path) as client:
            client.sendall(GREETING)
            asked = [frame(HEADERS, 5, number, headers(b"/no/such")) for number in range(1, 101, 2)]
            await asyncio.to_thread(client.sendall, b"".join(asked))
            assert b"refused calls a second" in await until_closed(client)
        assert await reverses(path)


@pytest.mark.parametrize("reads", [True, False])
async def test_after_an_error_a_connection_is_gone_within_a_second(
    tmp_path: Path, *, reads: bool
) -> None:
    """Also where the client reads nothing, and much was on its way to it."""
    async with running(tmp_path, Share()) as (path, server):
        with connected(path) as client:
            client.sendall(GREETING + frame(SETTINGS, 0, 0, b"\0\x04\x7f\xff\xff\xff"))
            client.sendall(frame(8, 0, 0, (2**30).to_bytes(4, "big")))
            body = frame(0, 1, 1, b"\0\0\0\0\0")
            client.sendall(frame(HEADERS, 4, 1, headers(FLOOD)) + body)
            await asyncio.sleep(0.2)
            client.sendall(frame(SETTINGS, 0, 0, b"odd"))
            if reads:
                assert frame(GOAWAY, 0, 0)[3:4] in await until_closed(client)
            (owner,) = server.budgets.owners.values()
            for _ in range(50):  # a second, by the loop that has the deadline
                if not server._connections:
                    break
                await asyncio.sleep(0.02)
            assert not server._connections
            assert owner.held < 300_000  # what the kernel still has for the client
        while owner.held:
            await asyncio.sleep(0.02)
        assert not owner.connections


def until_ponged(client: socket.socket) -> None:
    heard = b""
    while b"pingpong" not in heard:
        heard += client.recv(65536)


async def test_an_owner_that_used_its_share_waits_and_nobody_with_it(tmp_path: Path) -> None:
    share = Share(processor=0.5, processor_burst_seconds=0.1)
    async with running(tmp_path, share) as (path, server):
        with connected(path) as greedy:
            greedy.sendall(GREETING)
            await asyncio.sleep(0.05)
            (owner,) = server.budgets.owners.values()
            loop = asyncio.get_running_loop()
            owner.account.processor.use(0.1 + 1.0, loop.time())  # it rests for two seconds
            greedy.sendall(frame(6, 0, 0, b"pingpong"))
            began = loop.time()
            answer = asyncio.create_task(asyncio.to_thread(until_ponged, greedy))
            assert await reverses(path)
            assert not answer.done()
            await answer
            assert loop.time() - began >= 1.9
