"""What the kernel took and nobody read counts: it is in our control group, whoever holds it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.transport import unread_output
from sds.transport.budget import Budgets
from sds.transport.budget_sizes import Share
from sds.transport.connected_socket import ConnectedSocket
from sds.transport.server import Server
from sds.transport.unread_output import UnreadOutput
from sds.unix_sockets import listening
from tests.support.raw_client import connected, message

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OURSELVES = f"uid {os.geteuid()}"
SENT = 100_000


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread_output, "LOOK_SECONDS", 0.01)


class User:
    """Counts what it is told to count."""

    def __init__(self, *, room: bool = True) -> None:
        self.recounted = self.left = 0
        self._room = room

    def readable(self) -> None:
        raise AssertionError

    def drained(self) -> None:
        raise AssertionError

    def recount(self) -> None:
        self.recounted += 1

    def left_unread(self, count: int) -> Callable[[], None] | None:
        if not self._room:
            return None
        self.left += count

        def give_back() -> None:
            self.left -= count

        return give_back

    def lost(self) -> None:
        pass


def pair(user: User) -> tuple[ConnectedSocket, socket.socket, int]:
    """An endpoint with unread output, its client, and the descriptor."""
    ours, theirs = socket.socketpair()
    descriptor = ours.fileno()
    endpoint = ConnectedSocket(ours, asyncio.get_running_loop(), user, bytearray(16))
    endpoint.write([bytes(SENT)])
    return endpoint, theirs, descriptor


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_it_counts_until_the_client_has_read() -> None:
    user = User()
    endpoint, theirs, _ = pair(user)
    with theirs:
        assert endpoint.held >= SENT
        assert endpoint.backlog == endpoint.unsent == 0
        assert user.recounted == 1
        assert len(theirs.recv(SENT, socket.MSG_WAITALL)) == SENT
        await until(lambda: endpoint.held == 0)
        assert user.recounted == 2
        assert not UnreadOutput.of(asyncio.get_running_loop())._senders
        endpoint.abort()


@pytest.mark.parametrize("how", ["reads", "goes"])
async def test_it_counts_after_the_end_until_the_client_reads_or_goes(how: str) -> None:
    user = User()
    endpoint, theirs, descriptor = pair(user)
    with theirs:
        endpoint.abort()
        await asyncio.sleep(0.05)
        assert endpoint.held == 0
        assert user.left >= SENT
        assert is_open(descriptor)
        if how == "reads":
            assert len(theirs.recv(SENT, socket.MSG_WAITALL)) == SENT
            assert theirs.recv(1) == b""  # it sees the end as ever
        else:
            theirs.close()
        await until(lambda: not user.left)
        assert not is_open(descriptor)


async def test_a_socket_is_closed_at_once_if_nothing_more_may_be_counted() -> None:
    endpoint, theirs, descriptor = pair(User(room=False))
    with theirs:
        endpoint.abort()
        assert not is_open(descriptor)


async def much(_request: bytes, _context: Any) -> bytes:
    return bytes(SENT)


async def test_an_owner_whose_clients_read_nothing_uses_up_its_budget(tmp_path: Path) -> None:
    """Who keeps its ends of connections that were closed for that gains nothing."""
    methods: dict[str, Any] = {"Much": grpc.unary_unary_rpc_method_handler(much)}
    handlers = [grpc.method_handlers_generic_handler("t.T", methods)]
    server = Server(handlers, budgets=Budgets(Share(held_bytes=1_000_000)))
    await server.listen(listening(tmp_path / "t.sock", 0o600))
    owner = server.budgets.owner(OURSELVES)
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            one = stack.enter_context(connected(tmp_path / "t.sock"))
            one.call(b"/t.T/Much", message(b""), ends=True)
            await asyncio.sleep(0.01)
        exceeded = server.budgets.exceeded
        await until(lambda: exceeded.get(OURSELVES, Counter())["memory"] > 10)
        assert 600_000 < owner.held < 1_200_000
        await server.stop(0)
        assert owner.held > 300_000
        assert owner.connections >= 3  # their descriptors are not free yet
    await until(lambda: not owner.held)
    assert not owner.connections


async def test_what_a_stranger_leaves_keeps_no_other_out(tmp_path: Path) -> None:
    methods: dict[str, Any] = {"Much": grpc.unary_unary_rpc_method_handler(much)}
    server = Server([grpc.method_handlers_generic_handler("t.T", methods)])
    path = tmp_path / "t.sock"
    await server.listen(listening(path, 0o600), recognised=False)
    with connected(path) as one:
        one.call(b"/t.T/Much", message(b""), ends=True)
        await until(lambda: server.budgets.strangers.held > SENT)
        await server.stop(0)
        assert not server.budgets.strangers.held
        assert not server.budgets.strangers.connections
