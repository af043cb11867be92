"""Many processes of one pod connect without end; another pod of the same user goes on connecting.

Pods of one image have one user, as all sidecars of a mesh have.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from sds.workload import connection_rate
from sds.workload import front_door as front_door_module
from sds.workload.proc import pod_roots
from tests.support import need
from tests.support.cgroups import pod_cgroup
from tests.support.front_door import front_door, rules, unix, until
from tests.support.node import short_folder
from tests.support.process import PATIENCE_SECONDS, running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = pytest.mark.root

ATTACKER = "00000000-0000-4000-8000-00000000000a"
VICTIM = "00000000-0000-4000-8000-00000000000b"
_JOIN = """
import os, select, socket, sys, time
path = sys.argv[1]
for group in sys.argv[2:]:
    open(group, "w").write(str(os.getpid()))
"""
CROWD = f"""{_JOIN}
for _ in range(16):
    if os.fork() == 0:
        while True:
            held = [socket.socket(socket.AF_UNIX) for _ in range(8)]
            for one in held:
                one.setblocking(False)
                one.connect_ex(path)
            select.select(held, [], [], 5)  # those who go before the door looks do not count
            time.sleep(0.02)
            for one in held:
                one.close()
os.wait()
"""
VISITOR = f"""{_JOIN}
visits = 0
while visits < 40:
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(20)
        try:
            one.connect(path)
        except BlockingIOError:  # the kernel's queue is full, which is not the agent's to say
            time.sleep(0.02)
            continue
        one.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n")
        one.sendall(bytes((0, 0, 0, 4)) + bytes(5))
        said = one.recv(4096)
        assert b"too many" not in said, said
        visits += 1
    time.sleep(0.05)
"""


@contextlib.contextmanager
def emptied(groups: Sequence[Path]) -> Iterator[None]:
    """Let nobody stay in a control group."""
    try:
        yield
    finally:
        for group in groups:
            for pid in group.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


async def test_a_pods_crowd_turns_no_other_pod_away(monkeypatch: pytest.MonkeyPatch) -> None:
    need.root()
    # The crowd exceeds these, and the visitor does not, however little time the crowd's processes
    # get: each connects eight times in a row, much faster than the door accepts.
    monkeypatch.setattr(connection_rate, "_OWNER", (10.0, 64.0))
    monkeypatch.setattr(front_door_module, "_ACCEPTS_AT_ONCE", 4)
    with (
        short_folder() as folder,
        pod_cgroup(ATTACKER, "a" * 64) as attackers,
        pod_cgroup(VICTIM, "b" * 64) as victims,
    ):
        known = rules({"unix:uid": "0"})
        roots = pod_roots({})
        async with front_door(folder, attestors=unix(), rules=known, roots=roots) as door:
            crowd: list[str | Path] = [sys.executable, "-c", CROWD, door.path, *attackers]
            visitor: list[str | Path] = [sys.executable, "-c", VISITOR, door.path, *victims]
            async with running(crowd) as attacker:
                with emptied(attackers):
                    refused = door.door.statistics.refused
                    await until(lambda: refused["connection_rate"] > 100, seconds=PATIENCE_SECONDS)
                    async with running(visitor) as victim:
                        async with asyncio.timeout(PATIENCE_SECONDS):
                            assert await victim.wait() == 0, victim.text
                await attacker.wait()
        await until(lambda: not any(each.read_text() for each in (*attackers, *victims)))
