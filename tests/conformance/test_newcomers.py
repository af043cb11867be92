"""A caller that a rule matches does not wait behind strangers."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import grpc
import pytest

from sds.workload.recognition import Timing
from tests.support.front_door import ask, front_door, rules, unix, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.front_door import Door

OURS = {"unix:uid": str(os.geteuid())}
NAME = f"uid {os.geteuid()}"


async def test_a_caller_has_its_own_budget_as_soon_as_a_rule_matches(tmp_path: Path) -> None:
    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door:
        owner = door.server.budgets.owner(NAME)
        _, writer = await asyncio.open_unix_connection(str(door.path))
        try:
            # Nothing is sent: the first call does not have to pass the strangers' account.
            await until(lambda: owner.connections == 1 and owner.recognised)
        finally:
            writer.close()


async def kernel_keeps(door: Door, most: int) -> None:
    """Wait until the kernel may keep that much unread output of the one connection."""

    def kept() -> int | None:
        for served in door.server._connections:
            found: int = served._endpoint._socket.getsockopt(  # type: ignore[union-attr]
                socket.SOL_SOCKET, socket.SO_SNDBUF
            )
            return found
        return None

    _, writer = await asyncio.open_unix_connection(str(door.path))
    try:
        await until(lambda: kept() == most)
    finally:
        writer.close()


async def test_the_kernel_keeps_little_for_a_stranger(tmp_path: Path) -> None:
    """What a stranger never reads is in our control group, and in nobody's budget."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        usual = ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door:
        await kernel_keeps(door, usual)
    async with front_door(tmp_path, attestors=unix(), rules=rules({"unix:uid": "4242"})) as door:
        await kernel_keeps(door, 8 * 1024)


async def test_a_stranger_stays_one(tmp_path: Path) -> None:
    nobody, fast = rules({"unix:uid": "4242"}), Timing(hold=0.2, retry_first=0.02)
    async with front_door(tmp_path, attestors=unix(), rules=nobody, timing=fast) as door:
        owner = door.server.budgets.owner(NAME)
        _, writer = await asyncio.open_unix_connection(str(door.path))
        try:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(door.path)
            assert owner.connections >= 1
            assert not owner.recognised
        finally:
            writer.close()
