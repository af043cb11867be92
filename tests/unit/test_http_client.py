"""HTTP clients look up names in threads that hold up nobody."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import aiohttp
import pytest

from sds import http_client
from sds.http_client import _Names, client_session
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HANGS = """
import asyncio, socket, threading
from sds import threads
from sds.http_client import client_session

threads.END_SECONDS = 0.2
asked = threading.Event()

def no_name_server(*_, **__):
    asked.set()
    threading.Event().wait()

socket.getaddrinfo = no_name_server

async def main():
    async with client_session() as session:
        asking = asyncio.ensure_future(session.get("https://nobody.example/"))
        while not asked.is_set():
            await asyncio.sleep(0.01)
        asking.cancel()
        await asyncio.wait([asking])

asyncio.run(main())
print("ended", flush=True)
"""


def test_a_name_server_that_is_dead_keeps_no_process_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


@pytest.mark.no_cover
def test_every_client_is_made_in_one_place() -> None:
    found = {
        path
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "ClientSession"
    }
    assert found == {"sds/http_client.py"}


async def test_a_name_becomes_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(host: str, port: int, **asked: object) -> list[object]:
        assert (host, port, asked["type"]) == ("two.example", 443, socket.SOCK_STREAM)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 443, 0, 0)),
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1", 443, 0, 2)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    names = await _Names().resolve("two.example", 443)
    assert [one["host"] for one in names] == ["192.0.2.1", "2001:db8::1", "fe80::1%2"]
    assert {one["port"] for one in names} == {443}


async def test_a_name_that_does_not_resolve_is_an_error_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror, match="not known"):
        await _Names().resolve("nowhere.example", 443)


async def test_an_end_that_vanishes_without_a_word_is_noticed_within_a_minute() -> None:
    """A watch sends nothing for minutes: only the kernel's probes tell that nobody is there."""
    found: list[socket.socket] = []
    made = http_client._socket

    def noted(address: aiohttp.AddrInfoType) -> socket.socket:
        found.append(made(address))
        return found[-1]

    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.MonkeyPatch.context() as patched:
        patched.setattr(http_client, "_socket", noted)
        async with client_session(timeout=aiohttp.ClientTimeout(total=30)) as session:
            asking = asyncio.create_task(session.get(f"http://127.0.0.1:{mute.getsockname()[1]}/"))
            (await asyncio.to_thread(mute.accept))[0].close()
            (one,) = found
            assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, every, probes = (
                one.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}"))
                for name in ("IDLE", "INTVL", "CNT")
            )
            asking.cancel()
            await asyncio.wait([asking])
    assert idle + every * probes <= 60


@contextlib.asynccontextmanager
async def served(answer: bytes, times: int = 1) -> AsyncIterator[str]:
    """A server that answers every request with these bytes, so many times, while somebody reads."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                for _ in range(times):
                    writer.write(answer)
                    await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


async def test_heads_without_end_are_not_read() -> None:
    """Who answers in a publisher's place kept the event loop busy until the time was over."""
    async with (
        served(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000, times=10**9) as url,
        client_session(timeout=aiohttp.ClientTimeout(total=60)) as session,
    ):
        with pytest.raises(aiohttp.ClientError, match="no answer began within"):
            await session.get(url)


async def test_a_few_heads_and_a_large_body_are_read() -> None:
    body = bytes(range(256)) * 4096
    head = b"HTTP/1.1 200 OK\r\nX: %s\r\nContent-Length: %d\r\n\r\n" % (b"y" * 5000, len(body))
    answer = b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 4 + head + body
    async with (
        served(answer) as url,
        client_session(timeout=aiohttp.ClientTimeout(total=60)) as session,
    ):
        for _ in range(3):  # on one connection
            async with session.get(url) as got:
                assert (got.status, await got.read()) == (200, body)


async def test_no_cookie_is_kept() -> None:
    """A server that set another one in each answer was sent all of them, for ever."""
    answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n"
    async with served(answer) as url, client_session() as session:
        # The usual jar ignores those of hosts without a name.
        async with session.get(url.replace("127.0.0.1", "localhost")) as got:
            assert "a" in got.cookies
        assert not len(session.cookie_jar)
