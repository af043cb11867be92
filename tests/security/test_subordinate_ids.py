"""A user with subordinate IDs fills the node-wide socket as many users; another user is served."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from sds import subordinate_ids
from sds.workload.front_door import DoorLimits
from tests.support import need
from tests.support.front_door import ask, front_door, rules, unix, until
from tests.support.node import enterable_folder
from tests.support.process import running

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

FIRST, GROUP, USERS = 100_000, 2_000, 40
CROWD = f"""
import os, signal, socket, sys
os.setgroups([])
os.setresgid({GROUP}, {GROUP}, {GROUP})
held = []
for number in range({USERS}):
    os.setresuid(0, {FIRST} + number, 0)
    for _ in range(2):
        one = socket.socket(socket.AF_UNIX)
        one.connect(sys.argv[1])
        held.append(one)
    os.setresuid(0, 0, 0)
print("connected", flush=True)
signal.pause()
"""


async def test_a_user_who_is_many_keeps_no_other_out(monkeypatch: pytest.MonkeyPatch) -> None:
    need.root()
    with enterable_folder() as folder:
        monkeypatch.setattr(subordinate_ids, "OF_THIS_SYSTEM", delegating(folder))
        known = rules({"unix:gid": str(GROUP)}, {"unix:uid": "0"})
        limits = DoorLimits(connections=2 * USERS, connections_per_owner=16)
        async with front_door(folder, attestors=unix(), rules=known, limits=limits) as door:
            command: list[str | Path] = [sys.executable, "-c", CROWD, door.path]
            async with running(command) as crowd:
                await crowd.line("connected")
                seen = door.door.statistics
                await until(lambda: seen.accepted + seen.refused.total() == 2 * USERS)
                assert door.door.connections == 16  # as one user
                assert await ask(door.path) == "spiffe://example.org/r1"


def delegating(folder: Path) -> subordinate_ids.SubordinateIds:
    """What a system says on which one user has 65,536 IDs."""
    file = folder / "subuid"
    file.write_text(f"alice:{FIRST}:65536\n")
    return subordinate_ids.SubordinateIds(file)
