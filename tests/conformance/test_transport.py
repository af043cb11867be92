"""The transport's server on a real socket: what a client gets that errs, hangs up or is slow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.errors import CallEndedError
from sds.transport.events import ConnectionLimits
from sds.transport.frames import PREFACE, frame
from sds.transport.server import Server, ServerLimits
from sds.unix_sockets import listening
from tests.support.front_door import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

Code = grpc.StatusCode


class Service:
    """Methods that do one thing each."""

    def __init__(self) -> None:
        self.cancelled = 0
        self.written = 0
        self.running = 0
        self.write_error: BaseException | None = None
        self.release = asyncio.Event()

    async def echo(self, requests: Any, context: Any) -> None:
        async for request in requests:
            await context.write(request)

    async def reverse(self, request: bytes, _context: Any) -> bytes:
        return request[::-1]

    async def count(self, request: bytes, _context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield str(number).encode()

    async def fail(self, _request: bytes, _context: Any) -> bytes:
        raise ZeroDivisionError

    async def refuse(self, _request: bytes, context: Any) -> None:
        await context.abort(Code.NOT_FOUND, "not here: 100 % gone, ä")

    async def explain(self, request: bytes, context: Any) -> None:
        await context.abort(Code.PERMISSION_DENIED, request.decode() * 1500)

    async def wait(self, _request: bytes, _context: Any) -> bytes:
        self.running += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return b"released"

    async def flood(self, request: bytes, context: Any) -> None:
        for _ in range(int(request)):
            await context.write(bytes(100_000))
            self.written += 1

    async def late(self, _request: bytes, context: Any) -> None:
        """Write after the client has gone."""
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            with contextlib.suppress(CallEndedError):
                await context.write(b"nobody hears")
            self.cancelled += 1
            raise

    async def who(self, _request: bytes, context: Any) -> bytes:
        mark = dict(context.invocation_metadata()).get("mark")
        return f"{context.peer()} {context.caller()} {mark}".encode()

    def handler(self) -> grpc.GenericRpcHandler:
        unary = grpc.unary_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            "t.T",
            {
                "Echo": grpc.stream_stream_rpc_method_handler(self.echo),
                "Reverse": unary(self.reverse),
                "Count": grpc.unary_stream_rpc_method_handler(self.count),
                "Fail": unary(self.fail),
                "Refuse": unary(self.refuse),
                "Explain": unary(self.explain),
                "Wait": unary(self.wait),
                "Flood": grpc.unary_stream_rpc_method_handler(self.flood),
                "Late": unary(self.late),
                "Who": unary(self.who),
            },
        )


class Running:
    def __init__(self, path: Path, server: Server, service: Service) -> None:
        self.path = path
        self.server = server
        self.service = service

    @contextlib.asynccontextmanager
    async def channel(self, *options: tuple[str, Any]) -> AsyncIterator[grpc.aio.Channel]:
        own = [("grpc.use_local_subchannel_pool", 1), *options]
        async with grpc.aio.insecure_channel(f"unix:{self.path}", options=own) as channel:
            yield channel


@contextlib.asynccontextmanager
async def running(folder: Path, limits: ServerLimits | None = None) -> AsyncIterator[Running]:
    service = Service()
    server = Server([service.handler()], limits=limits)
    path = folder / "t.sock"
    await server.listen(listening(path, 0o600), caller="the caller")
    try:
        yield Running(path, server, service)
    finally:
        await server.stop(0)
        assert not server.tasks


def stream_of(channel: grpc.aio.Channel, path: str) -> Any:
    """A method that takes one message and answers with several."""
    return channel.unary_stream(path)


async def call(channel: grpc.aio.Channel, name: str, request: bytes = b"", **more: Any) -> bytes:
    method: Any = channel.unary_unary(f"/t.T/{name}")
    answer: bytes = await method(request, **more)
    return answer


async def refused(channel: grpc.aio.Channel, name: str, request: bytes = b"", **more: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(channel, name, request, **more)
    return caught.value.code(), caught.value.details()


async def test_the_four_kinds_of_calls(tmp_path: Path) -> None:
    async with running(tmp_path) as at, at.channel() as channel:
        assert await call(channel, "Reverse", b"abc") == b"cba"
        large = bytes(range(256)) * 8192
        assert await call(channel, "Reverse", large) == large[::-1]
        counted: Any = stream_of(channel, "/t.T/Count")(b"3")
        assert [number async for number in counted] == [b"0", b"1", b"2"]
        echo: Any = channel.stream_stream("/t.T/Echo")()
        for message in (b"", b"x", b"y" * 70_000):
            await echo.write(message)
            assert await echo.read() == message
        await echo.done_writing()
        assert await echo.read() == grpc.aio.EOF
        assert await echo.code() == Code.OK


async def test_each_error_has_its_status_and_ends_its_call_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as at, at.channel() as channel:
        echo: Any = channel.stream_stream("/t.T/Echo")()
        await echo.write(b"before")
        assert await echo.read() == b"before"
        with caplog.at_level(logging.ERROR, logger="sds.transport"):
            code, text = await refused(channel, "Fail")
        assert code == Code.INTERNAL
        assert "ZeroDivisionError" not in text
        assert "ZeroDivisionError" in caplog.text
        assert await refused(channel, "Refuse") == (Code.NOT_FOUND, "not here: 100 % gone, ä")
        code, text = await refused(channel, "Nothing")
        assert (code, text) == (Code.UNIMPLEMENTED, "there is no method /t.T/Nothing")
        code, text = await refused(
            channel, "Reverse", bytes(1000), compression=grpc.Compression.Gzip
        )
        assert code == Code.UNIMPLEMENTED
        assert "grpc-encoding identity" in text
        await echo.write(b"after")
        assert await echo.read() == b"after"
        echo.cancel()


@pytest.mark.parametrize("letter", ["x", "字", "🔑"])
async def test_a_long_text_keeps_its_status(tmp_path: Path, letter: str) -> None:
    """A client drops an answer with a head that is too long."""
    async with running(tmp_path) as at, at.channel() as channel:
        code, text = await refused(channel, "Explain", letter.encode())
        assert code is Code.PERMISSION_DENIED
        assert text.startswith(letter * 100)


async def test_a_call_ends_with_its_client(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        async with at.channel() as channel:
            method: Any = channel.unary_unary("/t.T/Wait")
            waiting = method(b"")
            await until(lambda: at.service.running == 1)
            waiting.cancel()
            await until(lambda: at.service.cancelled == 1)
            late: Any = channel.unary_unary("/t.T/Late")
            hanging = [method(b""), late(b"")]
            await until(lambda: at.service.running == 1)
        await until(lambda: at.service.cancelled == 3)
        assert not at.server.tasks
        del hanging


async def test_a_deadline_ends_the_call_at_the_server_too(tmp_path: Path) -> None:
    async with running(tmp_path) as at, at.channel() as channel:
        code, _ = await refused(channel, "Wait", timeout=0.1)
        assert code == Code.DEADLINE_EXCEEDED
        await until(lambda: at.service.cancelled == 1)


async def test_a_slow_reader_holds_its_own_call_only(tmp_path: Path) -> None:
    async with running(tmp_path) as at, at.channel() as slow, at.channel() as quick:
        flood: Any = stream_of(slow, "/t.T/Flood")(b"1000")
        await until(lambda: at.service.written > 0)
        while True:  # until it stands still: windows and buffers are full
            before = at.service.written
            assert await call(quick, "Reverse", b"ab") == b"ba"
            await asyncio.sleep(0.1)
            if at.service.written == before:
                break
        assert at.service.written < 1000
        sizes = [len(message) async for message in flood]
        assert sizes == [100_000] * 1000


async def test_connections_are_told_apart(tmp_path: Path) -> None:
    async with running(tmp_path) as at, at.channel() as one, at.channel() as other:
        first = await call(one, "Who", metadata=[("mark", "m")])
        assert first.endswith(b" the caller m")
        again = await call(one, "Who", metadata=[("mark", "m")])
        assert again == first
        assert await call(other, "Who", metadata=[("mark", "m")]) != first


async def test_a_crowd_finds_room_in_the_queue(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        # Nobody accepts while this runs: the loop is not asked.
        clients = [socket.socket(socket.AF_UNIX) for _ in range(400)]
        for client in clients:
            client.setblocking(False)  # noqa: FBT003  the socket's own method
            client.connect(str(at.path))  # BlockingIOError: the queue is full
        for client in clients:
            client.close()
        async with at.channel() as channel:
            assert await call(channel, "Reverse", b"ab") == b"ba"


async def test_stopping_lets_calls_end_within_the_grace(tmp_path: Path) -> None:
    async with running(tmp_path) as at, at.channel(("grpc.enable_retries", 0)) as channel:
        method: Any = channel.unary_unary("/t.T/Wait")
        waiting = asyncio.ensure_future(_result(method(b"")))
        await until(lambda: at.service.running == 1)
        stopping = asyncio.create_task(at.server.stop(30))
        await until(lambda: at.server.stopping)
        at.service.release.set()
        assert await waiting == b"released"
        await stopping


async def _result(waiting: Any) -> bytes:
    answer: bytes = await waiting
    return answer


async def test_stopping_ends_what_does_not_end(tmp_path: Path) -> None:
    async with running(tmp_path) as at, at.channel() as channel:
        method: Any = channel.unary_unary("/t.T/Wait")
        waiting = asyncio.ensure_future(_result(method(b"")))
        await until(lambda: at.service.running == 1)
        await at.server.stop(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await waiting
        assert caught.value.code() == Code.UNAVAILABLE


async def answer_to(path: Path, *parts: bytes, enough: bytes = b"\xff" * 9) -> bytes:
    """What the server says to these bytes until it closes, or has said ``enough``."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)  # noqa: FBT003  the socket's own method
        await loop.sock_connect(client, str(path))
        for part in parts:
            await loop.sock_sendall(client, part)
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while enough not in heard and (chunk := await loop.sock_recv(client, 65536)):
                heard += chunk
        return heard


async def test_what_is_not_http2_is_told_so_and_closed(tmp_path: Path) -> None:
    limits = ServerLimits(greeting_seconds=0.2, connection=ConnectionLimits(frame_burst=50))
    async with running(tmp_path, limits) as at:
        assert b"is not HTTP/2" in await answer_to(at.path, b"GET / HTTP/1.1\r\n\r\n")
        assert await answer_to(at.path, PREFACE[:10])  # our settings; closed after the time
        greeting = PREFACE + frame(4, 0, 0)
        pings = frame(6, 0, 0, bytes(8)) * 100
        assert b"frames a second" in await answer_to(at.path, greeting, pings)


def field(name: bytes, value: bytes) -> bytes:
    """HPACK: a literal without indexing (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


@pytest.mark.parametrize(
    ("method", "content_type", "status"),
    [(b"GET", b"application/grpc", b"405"), (b"POST", b"text/plain", b"415")],
)
async def test_http_that_is_not_grpc_gets_an_http_status(
    tmp_path: Path, method: bytes, content_type: bytes, status: bytes
) -> None:
    block = (
        field(b":method", method)
        + field(b":scheme", b"http")
        + field(b":path", b"/t.T/Reverse")
        + field(b"content-type", content_type)
    )
    async with running(tmp_path) as at:
        greeting = PREFACE + frame(4, 0, 0)
        asked = frame(1, 5, 1, block)
        assert status in await answer_to(at.path, greeting, asked, enough=status)


async def test_held_requests_are_bounded(tmp_path: Path) -> None:
    limits = ServerLimits(held_bytes=150_000)
    async with running(tmp_path, limits) as at, at.channel() as channel:
        code, text = await refused(channel, "Reverse", bytes(200_000))
        assert code == Code.RESOURCE_EXHAUSTED
        assert "wait on this connection" in text
        assert await call(channel, "Reverse", bytes(100_000)) == bytes(100_000)
