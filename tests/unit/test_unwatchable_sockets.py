"""What becomes of sockets while the kernel has no memory to watch one (epoll_ctl(2), ENOMEM)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sds.transport.accepting import Acceptor
from sds.transport.connected_socket import ConnectedSocket
from sds.transport.input_readiness import InputReadiness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest


class ShortOfMemory:
    """The running loop, which cannot watch another descriptor for ``times`` attempts."""

    def __init__(self, times: int) -> None:
        self.times = times
        self._loop = asyncio.get_running_loop()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def add_reader(self, *arguments: Any) -> None:
        self._watch(self._loop.add_reader, arguments)

    def add_writer(self, *arguments: Any) -> None:
        self._watch(self._loop.add_writer, arguments)

    def _watch(self, add: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self.times:
            self.times -= 1
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        add(*arguments)


class User:
    """Notes what the socket tells."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def readable(self) -> None:
        self.told.append("readable")

    def drained(self) -> None:
        self.told.append("drained")

    def recount(self) -> None:
        pass

    def left_unread(self, _count: int) -> None:
        """Count nothing."""

    def lost(self) -> None:
        self.told.append("lost")


@contextmanager
def connected(loop: Any) -> Iterator[tuple[ConnectedSocket, socket.socket, User]]:
    ours, theirs = socket.socketpair()
    user = User()
    endpoint = ConnectedSocket(ours, loop, user, bytearray(1024))
    with theirs:
        yield endpoint, theirs, user
        endpoint.abort()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_one_connection_ends_and_the_next_ones_are_read() -> None:
    loop = ShortOfMemory(times=1)
    with connected(loop) as (one, _, first), connected(loop) as (two, wire, second):
        one.resume_reading()
        await until(lambda: first.told == ["lost"])
        two.resume_reading()
        wire.send(b"x")
        await until(lambda: second.told == ["readable"])
    assert InputReadiness.of(loop)._epoll is None  # type: ignore[arg-type]


async def test_output_that_cannot_wait_ends_its_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with connected(ShortOfMemory(times=1)) as (one, _, user):
        one.write([bytes(4 * 1024 * 1024)])
        await until(lambda: user.told == ["lost"])
    assert [record.message for record in caplog.records] == ["a connection failed"]


async def test_a_listening_socket_is_watched_again_later() -> None:
    loop = ShortOfMemory(times=0)
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        acceptor = Acceptor(listener, loop, accepted.append)  # type: ignore[arg-type]
        acceptor._pause(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        loop.times = 2
        with socket.create_connection(listener.getsockname()):
            await until(lambda: bool(accepted))
        acceptor.close()
        accepted[0].close()
