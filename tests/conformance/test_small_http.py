"""The small HTTP listener over real sockets: what it answers, and what it bounds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import h11
import pytest
import uvloop

from sds import faults
from sds.errors import SocketError
from sds.operations import http_listener, listener_places
from sds.operations.http_listener import HttpAnswer, HttpRequest, listening
from sds.settings.listen import ListenAddress
from sds.transport.turns import Turns
from tests.support.cost import counted_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sds.transport.budget import Account

LOOPBACK = ListenAddress(host="127.0.0.1", port=0)
BIG = bytes(4 * 1024 * 1024)


def hello(request: HttpRequest) -> HttpAnswer:
    return HttpAnswer(body=f"{request.headers.get('x', '')}\n".encode())


def broken(_request: HttpRequest) -> HttpAnswer:
    raise ValueError("no secret here")


def big(_request: HttpRequest) -> HttpAnswer:
    return HttpAnswer(body=BIG)


ROUTES = {"/": hello, "/broken": broken, "/big": big}


async def exchange(address: ListenAddress, sent: bytes) -> bytes:
    """Everything that comes back until the listener closes."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(sent)
    writer.write_eof()
    got = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return got


async def exchange_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """One answer on a connection that stays."""
    writer.write(get("/"))
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n\n"), 10)


def get(path: str, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *headers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize(
    ("request_", "status", "said"),
    [
        (get("/", "X: 1"), b"200", b"\r\n\r\n1\n"),
        (get("/?query", "X: 2"), b"200", b"\r\n\r\n2\n"),
        (get("/", method="HEAD"), b"200", b"Content-Length: 1\r\n"),
        (get("/", method="POST"), b"405", b"Allow: GET, HEAD"),
        (get("/none"), b"404", b"not found"),
        (get("/broken"), b"500", b"the log says why"),
        (b"GET /\r\n\r\n", b"400", b"no such HTTP"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"404", b""),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"400", b"no such HTTP"),
        (get("/", "Content-Length: 2000") + bytes(2000), b"413", b""),
    ],
)
async def test_requests(request_: bytes, status: bytes, said: bytes) -> None:
    async with listening(LOOPBACK, ROUTES) as bound:
        got = await exchange(bound, request_)
    assert got.split(b" ", 2)[1] == status
    assert said in got
    assert b"no secret" not in got


async def test_headers_without_end_end_the_connection() -> None:
    async with listening(LOOPBACK, ROUTES) as bound:
        _, writer = await asyncio.open_connection(bound.host, bound.port)
        writer.write(b"GET / HTTP/1.1\r\nA: ")
        with pytest.raises(ConnectionError):  # noqa: PT012  written until it is refused
            while True:
                writer.write(b"x" * 10_000)
                await writer.drain()


async def test_requests_on_one_connection_are_answered_in_order() -> None:
    async with listening(LOOPBACK, ROUTES) as bound:
        got = await exchange(bound, b"".join(get("/", f"X: {n}") for n in range(50)))
    bodies = [part.partition(b"\r\n\r\n")[2] for part in got.split(b"HTTP/1.1 200")[1:]]
    assert bodies == [f"{n}\n".encode() for n in range(50)]


async def test_one_connection_more_takes_the_place_of_the_silent() -> None:
    async with listening(LOOPBACK, ROUTES) as bound:
        silent = [
            await asyncio.open_connection(bound.host, bound.port)
            for _ in range(listener_places.MAX_CONNECTIONS)
        ]
        assert b"200" in await exchange(bound, get("/"))
        reader, _ = silent[0]
        assert await asyncio.wait_for(reader.read(), 10) == b""
        for _, writer in silent:
            writer.close()


async def test_a_crowd_that_comes_at_once_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever number of descriptors this machine allows.
    monkeypatch.setattr(listener_places, "_PART_OF_DESCRIPTORS", 1)
    async with listening(LOOPBACK, ROUTES) as bound:
        asked = (exchange(bound, get("/")) for _ in range(2 * listener_places.MAX_CONNECTIONS))
        answers = await asyncio.gather(*asked)
    assert all(b" 200 " in one for one in answers)


async def test_a_silent_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "REQUEST_SECONDS", 0.05)
    async with listening(LOOPBACK, ROUTES) as bound:
        reader, writer = await asyncio.open_connection(bound.host, bound.port)
        writer.write(b"GET / HT")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a request that never ends, in small pieces, until the listener closes."""
    writer.write(b"GET / HTTP/1.1\r\nX: ")
    try:
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)
    except ConnectionError:
        pass  # the listener has closed
    finally:
        writer.close()


async def test_a_request_that_comes_in_pieces_has_no_longer_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_listener, "REQUEST_SECONDS", 0.2)
    async with listening(LOOPBACK, ROUTES) as bound:
        _, writer = await asyncio.open_connection(bound.host, bound.port)
        await drip(writer)


async def test_requests_that_come_in_pieces_keep_no_place() -> None:
    async with listening(LOOPBACK, ROUTES) as bound, asyncio.TaskGroup() as group:
        drips = []
        for _ in range(listener_places.MAX_CONNECTIONS):
            _, writer = await asyncio.open_connection(bound.host, bound.port)
            drips.append(group.create_task(drip(writer)))
        assert b"200" in await exchange(bound, get("/"))
        for one in drips:
            one.cancel()


async def test_who_does_not_read_costs_one_answer() -> None:
    made = 0

    def counted(request: HttpRequest) -> HttpAnswer:
        nonlocal made
        made += 1
        return big(request)

    async with listening(LOOPBACK, {"/big": counted}) as bound:
        _, writer = await asyncio.open_connection(bound.host, bound.port, limit=1)
        writer.write(b"".join(get("/big") for _ in range(20)))
        await writer.drain()
        async with listening(LOOPBACK, ROUTES) as other:
            for _ in range(20):
                await exchange(other, get("/"))
        assert made <= 3
        writer.transport.abort()


async def test_a_flood_of_requests_on_one_connection_holds_up_no_other() -> None:
    """Requests that arrived together are answered in turns with those of others."""
    made = 0

    def counted(request: HttpRequest) -> HttpAnswer:
        nonlocal made
        made += 1
        return hello(request)

    count = 600
    async with listening(LOOPBACK, {"/flood": counted, "/": hello}) as bound:
        reader, writer = await asyncio.open_connection(bound.host, bound.port)
        other, asking = await asyncio.open_connection(bound.host, bound.port)
        writer.write(get("/flood") * count)
        asking.write(get("/", "X: 1"))
        await asyncio.wait_for(other.readuntil(b"\r\n\r\n1\n"), 10)
        before = made
        for _ in range(count):
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n\n"), 10)
        assert before < count // 2
        assert made == count
        writer.close()
        asking.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("where", ["receive_data", "next_event", "send"])
def test_a_fault_with_one_connection_ends_that_one(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[Any], object], where: str
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        faults.watch_loop(loop)
        before = sum(faults.counts().values())
        async with listening(LOOPBACK, ROUTES) as bound:
            with monkeypatch.context() as patch:
                patch.setattr(h11.Connection, where, fail)
                with contextlib.suppress(ConnectionResetError):
                    assert await exchange(bound, get("/")) == b""
            assert b"200" in await exchange(bound, get("/"))
        assert sum(faults.counts().values()) > before

    run(ask())


async def test_a_unix_socket_leaves_with_the_listener(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with listening(ListenAddress(path=path), ROUTES):
        assert path.is_socket()
    assert not path.exists()


async def test_files_that_others_make_meanwhile_have_their_own_permissions(tmp_path: Path) -> None:
    """The umask is the whole process's: a listener that starts must not change it."""
    made = tmp_path / "made"
    asyncio.get_running_loop().call_soon(made.mkdir)
    async with listening(ListenAddress(path=tmp_path / "s"), ROUTES):
        assert made.stat().st_mode & 0o700 == 0o700
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


async def test_the_socket_of_a_process_that_stands_still_stays(tmp_path: Path) -> None:
    """Its queue is full, so nobody can connect: that is no dead process's socket."""
    path = tmp_path / "s"
    with contextlib.ExitStack() as opened:
        stopped = opened.enter_context(socket.socket(socket.AF_UNIX))
        stopped.bind(str(path))
        stopped.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                client = opened.enter_context(socket.socket(socket.AF_UNIX))
                client.settimeout(0)
                client.connect(str(path))
        with pytest.raises(SocketError, match="another process listens on"):
            async with listening(ListenAddress(path=path), ROUTES):
                pass
        assert path.is_socket()
    async with listening(ListenAddress(path=path), ROUTES):
        pass


def test_under_the_agents_event_loop() -> None:
    async def ask() -> bytes:
        async with listening(LOOPBACK, ROUTES) as bound:
            return await exchange(bound, get("/", "X: 1"))

    assert uvloop.run(ask()).endswith(b"\r\n\r\n1\n")


def test_a_connection_that_waits_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's event loop begins to read although the listener has said that it must not."""
    monkeypatch.setattr(listener_places, "MAX_CONNECTIONS", 1)

    async def ask() -> None:
        patient = listener_places.Patience(answers=1000, grace=3600)
        async with listening(LOOPBACK, ROUTES, patience=patient) as bound:
            reader, writer = await asyncio.open_connection(bound.host, bound.port)
            with socket.create_connection((bound.host, bound.port)) as waits:
                waits.setblocking(False)  # noqa: FBT003  the socket's own method
                sent = 0
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sent += waits.send(get("/") * 1000)
                for _ in range(20):  # turns of the loop
                    assert b"200" in await exchange_on(reader, writer)
                with pytest.raises(BlockingIOError):
                    waits.recv(1)
                writer.close()
                got = await asyncio.get_running_loop().sock_recv(waits, 100)
            assert b" 200 " in got

    uvloop.run(ask())


async def test_little_is_read_at_a_time() -> None:
    """A hundred connections that leave their answers unread kept 25 MB of further requests."""
    read: list[int] = []
    updated = http_listener._Connection.buffer_updated

    def counted(connection: http_listener._Connection, count: int) -> None:
        read.append(count)
        updated(connection, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_listener._Connection, "buffer_updated", counted)
        async with listening(LOOPBACK, ROUTES) as bound:
            answers = await exchange(bound, get("/", "A: " + "b" * 2000) * 50)
    assert answers.count(b" 200 ") == 50
    assert max(read) <= 16 * 1024


FLOODS = {
    "headers": get("/")[:-2] + b"a:\r\n" * 25_000 + b"\r\n",
    "continued header": get("/", "A: b")[:-2] + b" c\r\n" * 25_000 + b"\r\n",
    "trailers": get("/", "Transfer-Encoding: chunked") + b"0\r\n" + b"a:\r\n" * 25_000 + b"\r\n",
    "chunks": get("/", "Transfer-Encoding: chunked") + b"1\r\na\r\n" * 16_000,
    "line feeds": get("/")[:-2] + b"a:\n" * 33_000 + b"\n",
}
"""100 KB each: a Unix socket takes that at once, and the listener reads it at once."""


async def most_lines(monkeypatch: pytest.MonkeyPatch, path: Path, sent: bytes) -> tuple[int, bytes]:
    """Lines of Python in the longest job of the loop, and the answer to what was sent at once."""
    most = 0
    do = Turns._do

    def counted(turns: Turns, account: Account, job: Callable[[], bool], now: float) -> bool:
        nonlocal most
        with counted_lines() as found:
            more = do(turns, account, job, now)
        most = max(most, found.count)
        return more

    with monkeypatch.context() as patch:
        patch.setattr(Turns, "_do", counted)
        async with listening(ListenAddress(path=path), ROUTES):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            client.setblocking(False)  # noqa: FBT003  the socket's own method
            assert client.send(sent) == len(sent)
            reader, writer = await asyncio.open_connection(sock=client)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            writer.transport.abort()
    return most, answer


@pytest.mark.parametrize("flood", FLOODS)
async def test_no_request_holds_the_loop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flood: str
) -> None:
    """The largest request that is answered bounds the work for those that are not."""
    request = get("/", *["a: b"] * 200)
    longest, answer = await most_lines(monkeypatch, tmp_path / "s", request)
    assert b" 200 " in answer
    found, answer = await most_lines(monkeypatch, tmp_path / "s", FLOODS[flood])
    assert b" 431 " in answer
    assert found <= 2 * longest
