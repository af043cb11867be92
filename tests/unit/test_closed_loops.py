"""An event loop that was closed keeps nothing: neither jobs that waited nor sockets."""

from __future__ import annotations

import asyncio
import gc
import socket
import weakref
from typing import TYPE_CHECKING

import pytest

from sds.transport.budget import Budgets
from sds.transport.input_readiness import InputReadiness
from sds.transport.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable


class _Connection:
    """Stands for a connection that the end of its loop overtook."""

    def __init__(self) -> None:
        self.turns = Turns.of(asyncio.get_running_loop())
        self.readiness = InputReadiness.of(asyncio.get_running_loop())
        self.ours, self.theirs = socket.socketpair()

    def work(self) -> bool:
        return False

    def readable(self) -> None:
        """Be told of input."""


def wait_for_a_turn(connection: _Connection) -> None:
    budgets = Budgets()
    now = asyncio.get_running_loop().time()
    budgets.strangers.processor.use(100.0, now)  # for a quarter of an hour nothing is left
    connection.turns.queue(budgets.owner("uid 1"), connection, connection.work)


def wait_for_input(connection: _Connection) -> None:
    connection.readiness.expect(connection.ours.fileno(), connection.readable)


@pytest.mark.parametrize("wait", [wait_for_a_turn, wait_for_input])
def test_what_waits_when_its_loop_is_closed_is_freed(wait: Callable[[_Connection], None]) -> None:
    async def begin() -> weakref.ref[_Connection]:
        connection = _Connection()
        wait(connection)
        connection.ours.close()
        connection.theirs.close()
        return weakref.ref(connection)

    kept = asyncio.run(begin())
    gc.collect()
    assert kept() is None


async def test_all_users_of_a_loop_share_its_turns_and_its_sockets() -> None:
    loop = asyncio.get_running_loop()
    turns, readiness = Turns.of(loop), InputReadiness.of(loop)
    assert Turns.of(loop) is turns
    assert InputReadiness.of(loop) is readiness
