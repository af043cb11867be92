"""Ten thousand hostile connections: nothing of them stays, and nobody else notices.

Each kind once found a way to keep a descriptor, or to end the whole agent.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest

from sds import faults
from sds.clock import SystemClock
from sds.errors import KubernetesError, WorkloadError
from sds.workload.kubernetes.attestor import KubernetesAttestor
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.peer import Peer
from sds.workload.proc import pod_roots
from sds.workload.recognition import Timing
from tests.support import need
from tests.support.cgroups import group, hierarchies
from tests.support.front_door import (
    Door,
    ask,
    descriptors,
    front_door,
    nothing_stays_open,
    rules,
    unix,
    until,
)
from tests.support.process import output

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    from sds.workload.facts import Facts

pytestmark = pytest.mark.e2e

CLIENT = need.ROOT / "tests" / "support" / "hostile_client.py"
FAST = Timing(hold=0.3, retry_first=0.02, retry_most=0.1, recheck=0.2, linger=0)
OURS = {"unix:uid": str(os.geteuid())}
R0 = "spiffe://example.org/r0"
NOT_UTF8 = b"\xff\xfe"


class NoKubelet:
    async def chunks(self, path: str) -> AsyncGenerator[bytes, None]:
        if path:
            raise KubernetesError(f"nobody answers {path}", reason="kubelet")
        yield b""


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    pods = PodList(NoKubelet(), SystemClock())
    attestors = [*unix(), KubernetesAttestor(pods, None, roots=pod_roots({}))]
    async with front_door(tmp_path, attestors=attestors, rules=rules(OURS), timing=FAST) as door:
        yield door


async def hostile(door: Door, kind: str, count: int, *, join: Path | None = None) -> None:
    """Run the hostile client to its end; ``join``: in this control group."""
    command = [sys.executable, "-S", str(CLIENT), str(door.path), kind, str(count)]
    if join is not None:
        command = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(join), *command]
    status, out, err = await output(command, seconds=120)
    assert (status, out) == (0, f"made {count}"), err


async def test_ten_thousand_hostile_connections_leave_nothing(door: Door) -> None:
    assert await ask(door.path) == R0
    await until(lambda: not door.door.connections)
    before, tasks = descriptors(), len(asyncio.all_tasks())
    for kind, count in (
        ("close", 4000),
        ("preface", 3000),
        ("silent", 2400),
        ("exit", 300),
        ("exec", 300),
    ):
        await hostile(door, kind, count)
        assert await ask(door.path) == R0, kind
    await until(lambda: not door.door.connections)
    await nothing_stays_open(before)
    assert len(asyncio.all_tasks()) == tasks


@pytest.mark.root
async def test_a_control_group_whose_name_is_not_utf8(door: Door) -> None:
    need.root()
    assert await ask(door.path) == R0
    await until(lambda: not door.door.connections)
    before = descriptors()
    top = hierarchies()[0]
    with group(type(top)(os.fsdecode(os.fsencode(top / "hostile") + b"/" + NOT_UTF8))) as procs:
        await hostile(door, "close", 500, join=procs)
        await hostile(door, "preface", 500, join=procs)
    assert await ask(door.path) == R0
    await until(lambda: not door.door.connections)
    await nothing_stays_open(before)


class Broken:
    """An attestor that raises what the test wants for one of its callers."""

    name = "broken"
    costly: frozenset[str] = frozenset()

    def __init__(self, error: Callable[[], BaseException]) -> None:
        self.error = error
        self.peers: list[int] = []

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        del needed
        self.peers.append(peer.pid)
        raise self.error()

    def notices(self) -> tuple[str, ...]:
        return ()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        del listener
        return lambda: None


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        OSError(24, "Too many open files"),
        PermissionError(13, "Permission denied"),
        ValueError("a surprise"),
        RecursionError(),
        MemoryError(),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        WorkloadError("nothing is known", reason="process_unreadable"),
    ],
)
async def test_whatever_is_raised_about_one_caller_ends_nothing(
    tmp_path: Path, error: Exception
) -> None:
    """The caller is not recognised; the door serves on, and forgets it when it goes."""
    attestors = [*unix(), Broken(lambda: error)]
    async with front_door(tmp_path, attestors=attestors, rules=rules(OURS), timing=FAST) as door:
        before = descriptors()
        for _ in range(3):
            with pytest.raises(Exception, match="could not be recognised"):
                await ask(door.path)
        await until(lambda: not door.door.connections)
        await nothing_stays_open(before)
        assert not door.keeper.log


@pytest.mark.parametrize("where", ["of", "owner", "recognition", "connection", "begin"])
async def test_a_fault_in_any_step_of_a_connection_ends_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    broken = True

    def breaking(real: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            if broken:
                raise ZeroDivisionError("on purpose")
            return real(*args, **kwargs)

        return step

    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS), timing=FAST) as door:
        before = descriptors()
        faulty = faults.counts().get("connection", 0)
        target: tuple[object, str] = {
            "of": (Peer, "of"),
            "owner": (sys.modules["sds.workload.front_door"], "owner_of"),
            "recognition": (sys.modules["sds.workload.front_door"], "Recognition"),
            "connection": (door.server, "connection"),
            "begin": (sys.modules["sds.transport.served_connection"].ServedConnection, "begin"),
        }[where]
        real = getattr(*target)
        monkeypatch.setattr(*target, breaking(real))
        for _ in range(3):
            with pytest.raises(Exception, match=r"(?i)unavailable|socket closed|recvmsg|reset"):
                await ask(door.path, timeout=2)
        await until(lambda: not door.door.connections)
        broken = False
        monkeypatch.undo()
        assert await ask(door.path) == R0
        await until(lambda: not door.door.connections)
        await nothing_stays_open(before)
        assert faults.counts()["connection"] >= faulty + 3
