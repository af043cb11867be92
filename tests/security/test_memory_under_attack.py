"""Agent and authority in control groups of 256 MiB that kill, while everything attacks them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import need
from tests.support.cgroups import MemoryGroup, memory_group
from tests.support.hostile import attack
from tests.support.node import Node, short_folder
from tests.support.process import running
from tests.support.xds_client import Sotw, channel

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.root]

MIB = 1024 * 1024
LIMIT = 256 * MIB
HUNGRY = (
    "many_streams_and_gone",
    "reflection_behind_shut_windows",
    "names",
    "pings_unread",
    "connections_unread",
)
"""Those that want memory; the soak (``bench/soak.py``) runs all of them under the bound."""
STRANGER = need.ROOT / "tests" / "support" / "hostile_stranger.py"


@pytest.fixture
def node() -> Iterator[Node]:
    with short_folder() as folder:
        yield Node(folder, workloads=("web", "other"), lifetime="1h")


@pytest.fixture
def groups() -> Iterator[tuple[MemoryGroup, MemoryGroup]]:
    need.root()
    with memory_group(LIMIT) as authority, memory_group(LIMIT) as agent:
        yield authority, agent


def test_the_group_kills() -> None:
    """The control: a process that takes more is killed, and this is noticed."""
    need.root()
    hungry = f"x = b'a' * {2 * LIMIT}; print(len(x))"
    with memory_group(LIMIT) as group:
        status = os.spawnv(
            os.P_WAIT, "/bin/sh", ["sh", *group.prefix[1:], sys.executable, "-S", "-c", hungry]
        )
        assert status == -9
        assert group.kills() == 1


async def test_neither_is_killed(node: Node, groups: tuple[MemoryGroup, MemoryGroup]) -> None:
    ours, theirs = groups
    async with (
        node.authority(prefix=ours.prefix) as authority,
        node.agent(prefix=theirs.prefix) as agent,
        contextlib.AsyncExitStack() as stack,
    ):
        for kind, count in (("half", "600"), ("preface", "200")):
            command = [sys.executable, "-S", str(STRANGER), str(node.port), kind, count, "60"]
            await stack.enter_async_context(running(command))
        web = node.socket("web")
        await asyncio.gather(*(asyncio.to_thread(attack, name, web) for name in HUNGRY))
        async with channel(f"unix:{node.socket('other')}") as connection:
            await Sotw(connection).get("default")
        assert (authority.returncode, agent.returncode) == (None, None)
        assert (ours.kills(), theirs.kills()) == (0, 0)
