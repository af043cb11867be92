"""When a client may send, and what happens to calls and connections that nobody needs."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest

from sds.transport.events import ConnectionLimits
from sds.transport.server import Server, ServerLimits
from sds.unix_sockets import listening
from tests.conformance.test_transport import Code

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

WINDOW = 64 * 1024
LIMITS = ServerLimits(
    connection=ConnectionLimits(stream_window=WINDOW), single_bytes=4096, idle_seconds=0.3
)


@dataclass
class Client:
    """One connection by the library h2."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h2.connection.H2Connection = field(
        default_factory=lambda: h2.connection.H2Connection(
            h2.config.H2Configuration(header_encoding="utf-8")
        )
    )
    events: list[Any] = field(default_factory=list)

    def call(self, name: str) -> int:
        stream = self.http.get_next_available_stream_id()
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": f"/t.T/{name}",
            ":authority": "a",
            "content-type": "application/grpc",
            "te": "trailers",
        }
        self.http.send_headers(stream, list(fields.items()))
        self.flush()
        return stream

    def flush(self) -> None:
        self.writer.write(self.http.data_to_send())

    def send(self, stream: int, data: bytes) -> int:
        """Send what the window admits; how many bytes."""
        sent = 0
        while size := min(
            self.http.local_flow_control_window(stream),
            self.http.max_outbound_frame_size,
            len(data) - sent,
        ):
            self.http.send_data(stream, data[sent : sent + size])
            sent += size
        self.flush()
        return sent

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                data = await self.reader.read(65536)
                assert data, self.events
                self.events += self.http.receive_data(data)
                self.flush()

    def is_over(self, stream: int) -> bool:
        over = h2.events.StreamEnded | h2.events.StreamReset
        return any(isinstance(one, over) and one.stream_id == stream for one in self.events)


@contextlib.asynccontextmanager
async def connected(
    folder: Path, **methods: Callable[[Any, Any], Awaitable[Any]]
) -> AsyncIterator[tuple[Server, Client]]:
    kinds: dict[str, Any] = {
        name: (
            grpc.unary_stream_rpc_method_handler
            if name.startswith("One")
            else grpc.stream_stream_rpc_method_handler
        )(method)
        for name, method in methods.items()
    }
    server = Server([grpc.method_handlers_generic_handler("t.T", kinds)], limits=LIMITS)
    await server.listen(listening(folder / "t.sock", 0o600))
    reader, writer = await asyncio.open_unix_connection(folder / "t.sock")
    client = Client(reader, writer)
    client.http.initiate_connection()
    client.flush()
    try:
        await client.until(lambda: client.events)
        yield server, client
    finally:
        writer.close()
        await server.stop(0)


async def test_a_streams_window_opens_only_while_its_handler_reads(tmp_path: Path) -> None:
    goes_on, got = asyncio.Event(), []

    async def late(requests: Any, context: Any) -> None:
        await context.arrived()
        await goes_on.wait()
        got.append(await anext(requests))

    message = bytes(5 * WINDOW)
    data = b"\0" + len(message).to_bytes(4, "big") + message
    async with connected(tmp_path, Late=late) as (server, client):
        stream = client.call("Late")
        sent = client.send(stream, data)
        assert sent == WINDOW
        client.http.ping(b"12345678")
        client.flush()
        await client.until(
            lambda: any(isinstance(one, h2.events.PingAckReceived) for one in client.events)
        )
        assert client.http.local_flow_control_window(stream) == 0
        (served,) = server._connections
        assert served.owner.held < 2 * WINDOW
        goes_on.set()
        while sent < len(data):
            await client.until(lambda: client.http.local_flow_control_window(stream))
            sent += client.send(stream, data[sent:])
        await client.until(lambda: client.is_over(stream))
        assert got == [message]


async def test_what_follows_a_single_request_is_dropped(tmp_path: Path) -> None:
    ends = asyncio.Event()

    async def one(_request: bytes, _context: Any) -> None:
        await ends.wait()

    async with connected(tmp_path, OneThing=one) as (server, client):
        stream, large = client.call("OneThing"), client.call("OneThing")
        client.send(stream, bytes(5) + bytes(WINDOW - 5))
        client.send(large, b"\0" + (5_000).to_bytes(4, "big"))
        await client.until(lambda: client.is_over(large))
        (served,) = server._connections
        assert served.owner.held < WINDOW // 2
        ends.set()
        await client.until(lambda: client.is_over(stream))


@pytest.mark.parametrize("method", ["OneThing", "Many"])
@pytest.mark.parametrize("whole", [0, 1])
async def test_a_request_that_ends_within_a_message_is_no_success(
    tmp_path: Path, method: str, whole: int
) -> None:
    """A stream that its client has to cut short must not look as if all of it were taken."""
    got = []

    async def one(request: bytes, _context: Any) -> None:
        got.append(request)

    async def many(requests: Any, _context: Any) -> None:
        got.extend([request async for request in requests])

    message = b"\0\0\0\0\1a"
    async with connected(tmp_path, OneThing=one, Many=many) as (_, client):
        stream = client.call(method)
        client.send(stream, whole * message + message[:-1])
        client.http.end_stream(stream)
        client.flush()
        await client.until(lambda: client.is_over(stream))
        answered = h2.events.ResponseReceived | h2.events.TrailersReceived
        fields: dict[Any, Any] = {}
        for event in client.events:
            if isinstance(event, answered):
                fields |= dict(event.headers or ())
        status = fields["grpc-status"]
        if method == "OneThing" and whole:  # what follows the one request is dropped
            assert (status, got) == ("0", [b"a"])
        else:
            assert status == str(grpc.StatusCode.INTERNAL.value[0])
            assert not got


async def test_a_call_can_be_cut(tmp_path: Path) -> None:
    async def cut(requests: Any, context: Any) -> None:
        await anext(requests)
        context.cut()

    async with connected(tmp_path, Cut=cut) as (server, client):
        stream = client.call("Cut")
        client.send(stream, bytes(5))
        await client.until(lambda: client.is_over(stream))
        resets = [one for one in client.events if isinstance(one, h2.events.StreamReset)]
        assert [one.stream_id for one in resets] == [stream]
        (served,) = server._connections
        assert served._streams == 0


async def test_a_call_that_is_cut_behind_what_nobody_reads_takes_its_connection_with_it(
    tmp_path: Path,
) -> None:
    filled = asyncio.Event()

    async def flood(requests: Any, context: Any) -> None:
        await anext(requests)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                while True:
                    await context.write(bytes(60_000))
        filled.set()
        context.cut()

    async with connected(tmp_path, Flood=flood) as (server, client):
        client.http.update_settings({4: 2**31 - 1})
        client.http.increment_flow_control_window(2**30)
        stream = client.call("Flood")
        client.send(stream, bytes(5))
        await filled.wait()
        async with asyncio.timeout(10):
            while server._connections or server.tasks:
                await asyncio.sleep(0.01)


async def test_a_connection_without_a_call_ends_and_one_with_a_call_stays(tmp_path: Path) -> None:
    ends = asyncio.Event()

    async def wait(_requests: Any, context: Any) -> None:
        await ends.wait()
        await context.abort(Code.OK)

    async with connected(tmp_path, Wait=wait) as (server, client):
        stream = client.call("Wait")
        (served,) = server._connections
        served._expect_greeting()  # as after the time for a greeting
        await asyncio.sleep(0.5)
        assert not served._endpoint.is_closed()  # type: ignore[union-attr]
        ends.set()
        await client.until(lambda: client.is_over(stream))
        async with asyncio.timeout(10):
            while server._connections:
                await asyncio.sleep(0.01)
        with contextlib.suppress(AssertionError):
            await client.until(lambda: False)
        (told,) = [one for one in client.events if isinstance(one, h2.events.ConnectionTerminated)]
        assert told.additional_data == b"there was no call for 0.3 s"


async def test_a_server_that_stops_lets_its_client_close(tmp_path: Path) -> None:
    """gRPC's client drops an answer that it has not read if it cannot write meanwhile (EPIPE)."""
    ends, begun = asyncio.Event(), asyncio.Event()

    async def one(_request: bytes, context: Any) -> None:
        begun.set()
        await ends.wait()
        await context.write(b"answer")

    async with connected(tmp_path, OneThing=one) as (server, client):
        stream = client.call("OneThing")
        client.send(stream, bytes(5))
        await begun.wait()
        stopping = asyncio.create_task(server.stop(30))
        ends.set()
        data = b""  # the library h2 reads nothing after GOAWAY
        while b"answer" not in data:
            data += await client.reader.read(65536)
        for _ in range(50):
            await asyncio.sleep(0)
        assert not server.tasks
        assert server._connections
        assert not stopping.done()
        client.writer.close()
        await stopping
        assert not server._connections
