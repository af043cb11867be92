"""Executables on file systems that fail, hang or lie: one caller's trouble, and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sds.clock import SystemClock
from sds.workload import looker
from sds.workload.executables import ExecutableLimits, Executables
from sds.workload.peer import Peer, process_start_time
from sds.workload.recognition import Timing
from sds.workload.unix import UnixAttestor
from tests.support import need
from tests.support.front_door import (
    ask,
    descriptors,
    executed,
    front_door,
    nothing_stays_open,
    rules,
    until,
)
from tests.support.process import running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.e2e, pytest.mark.root]

CLIENT = need.ROOT / "tests" / "support" / "door_client.py"
PYTHON = Path(sys.executable).resolve()
ENVIRONMENT = {"PYTHONHOME": sys.base_prefix}
FAST = Timing(hold=1.5, retry_first=0.02, retry_most=0.1, recheck=0.2, linger=0)
R0 = "spiffe://example.org/r0"
DIGEST = hashlib.sha256(PYTHON.read_bytes()).hexdigest()
REQUEST = {"most": 1 << 30, "mounts": looker.MOST_MOUNTS_BYTES, "digest": None}


def peer_of(pid: int, *, owner: str) -> Peer:
    """Return a process as if it had connected."""
    return Peer(
        pid=pid,
        uid=0,
        gid=0,
        groups=frozenset(),
        pidfd=None,
        start_time=process_start_time(pid),
        owner=owner,
    )


@pytest.fixture(autouse=True)
def _root() -> None:
    need.root()


@contextlib.asynccontextmanager
async def served_by_its_user(
    folder: Path, name: str = "mount", *, content: Path = PYTHON
) -> AsyncIterator[tuple[Path, Path]]:
    """A file (Python) on a FUSE file system, and the file that says how that one behaves."""
    mount, mode = folder / name, folder / "mode"
    mount.mkdir()
    mode.write_text("ok")
    program = need.ROOT / "tests" / "support" / "executable_file_system.py"
    command = [sys.executable, str(program), str(mount), str(content), str(mode)]
    async with running(command):
        try:
            while not os.path.ismount(mount):
                await asyncio.sleep(0.02)
            yield mount / "x", mode
        finally:
            mode.write_text("ok")
            await (await asyncio.create_subprocess_exec("fusermount3", "-uz", mount)).wait()


@pytest.mark.parametrize("behaviour", ["ok", "eio", "hang"])
async def test_an_executable_that_its_user_serves(tmp_path: Path, behaviour: str) -> None:
    """Its content is right, and nothing about it is believed; others are recognised meanwhile."""
    mapping = rules({"unix:uid": "0", "unix:sha256": DIGEST})
    attestors = [UnixAttestor(Executables(SystemClock()))]
    async with (
        served_by_its_user(tmp_path) as (program, mode),
        front_door(tmp_path, attestors=attestors, rules=mapping, timing=FAST) as door,
    ):
        assert await ask(door.path) == R0
        await until(lambda: not door.door.connections)
        before = descriptors()
        command = [str(program), "-S", str(CLIENT), str(door.path), "ask"]
        async with running(command, env=ENVIRONMENT) as process:
            await until(lambda: door.door.connections >= 1)
            mode.write_text(behaviour)
            waited = []
            for _ in range(20):
                began = time.monotonic()
                assert await ask(door.path) == R0
                waited.append(time.monotonic() - began)
                await asyncio.sleep(0.05)
            mode.write_text("ok")
            await process.line("is refused")
        assert statistics.median(waited) < FAST.hold / 2  # each look at it would take that long
        await until(lambda: not door.door.connections)
        await nothing_stays_open(before)


async def test_a_process_that_executes_what_its_user_serves_loses_its_identity(
    tmp_path: Path, shared: Path
) -> None:
    """That file is not looked at, and is certainly not the one of the first look."""
    program = Path(shutil.copy(PYTHON, shared / "good"))
    mapping = rules({"unix:path": str(program), "unix:sha256": DIGEST})
    attestors = [UnixAttestor(Executables(SystemClock()))]
    async with (
        served_by_its_user(tmp_path) as (other, _),
        front_door(shared, attestors=attestors, rules=mapping, timing=FAST) as door,
        executed(door, [str(program), "-S", str(CLIENT)], other, name=R0) as process,
    ):
        await process.line("after exec")


async def test_no_name_of_a_mount_point_makes_fuse_look_like_a_disk(tmp_path: Path) -> None:
    """The kernel writes a carriage return in a directory's name as it is."""
    mounted = served_by_its_user(tmp_path, "x\r-\rext4\r")
    async with (
        mounted as (program, _),
        running(
            [str(program), "-S", "-c", "input()"], env=ENVIRONMENT, stdin=asyncio.subprocess.PIPE
        ) as process,
    ):
        await until(lambda: Path(f"/proc/{process.pid}/exe").readlink() == program)
        found = looker.answer(REQUEST | {"pid": process.pid})
    assert "FUSE" in found.get("error", ""), found


MANY_MOUNTS = """
mount -t tmpfs mounts "$1"
for each in 0 1 2 3 4 5 6 7 8 9 10 11; do
    mkdir "$1/$each"
    mount --rbind "$1" "$1/$each"
done
mkdir "$1/last"
mount -t tmpfs last "$1/last"
cp "$2" "$1/last/program"
echo mounted
exec "$1/last/program" 600
"""


async def test_a_process_with_thousands_of_mounts_holds_up_nobody_else(tmp_path: Path) -> None:
    """A look at it takes a tenth of a second, and a user with subordinate IDs is 65,536 owners."""
    program = Path("/bin/sleep")
    command = ["unshare", "--mount", "sh", "-e", "-c", MANY_MOUNTS, "sh", str(tmp_path), program]
    executables = Executables(SystemClock(), ExecutableLimits(look_seconds=30))
    ours, theirs = socket.socketpair()
    async with running(list(map(str, command))) as process:
        await process.line("mounted")
        await until(lambda: Path(f"/proc/{process.pid}/exe").readlink().name == "program")
        far = peer_of(process.pid, owner="uid 1")
        with ours, theirs, Peer.of(ours) as near:
            found = await executables.read(far, digest=True)
            assert found.path == str(tmp_path / "last" / "program")
            assert found.sha256 == hashlib.sha256(program.read_bytes()).hexdigest()
            stopped = executables._searching._process
            assert stopped is not None
            stopped.send_signal(signal.SIGSTOP)
            look = asyncio.create_task(executables.read(far, digest=True))
            await asyncio.sleep(0)
            assert (await executables.read(near, digest=True)).sha256 == DIGEST
            assert not look.done()
            stopped.send_signal(signal.SIGCONT)
            assert await look == found
    await executables.aclose()


async def test_a_user_that_changes_large_files_all_the_time(shared: Path) -> None:
    """It gets its share of hashing and no more; another program is recognised meanwhile."""
    mapping = rules({"unix:sha256": DIGEST})
    limits = ExecutableLimits(largest=64 << 20, burst=128 << 20, rate=1 << 20)
    executables = Executables(SystemClock(), limits)
    attestors = [UnixAttestor(executables)]
    async with (
        front_door(shared, attestors=attestors, rules=mapping, timing=FAST) as door,
        contextlib.AsyncExitStack() as stack,
    ):
        hostile = []
        for number in range(4):
            path = Path(shutil.copy(PYTHON, shared / f"large{number}"))
            os.truncate(path, 60 << 20)
            hostile.append(path)
            command = [str(path), "-S", str(CLIENT), str(door.path), "ask", "--uid", "4242"]
            await stack.enter_async_context(running(command, env=ENVIRONMENT))
        owners = executables._owners
        while "uid 4242" not in owners or owners["uid 4242"].left == limits.burst:
            await asyncio.sleep(0.01)  # the first large file is at work now
        waited: list[float] = []
        for _ in range(20):
            for path in hostile:
                os.utime(path)
            began = time.monotonic()
            assert await ask(door.path) == R0
            waited.append(time.monotonic() - began)
            await asyncio.sleep(0.05)
        assert statistics.median(waited) < FAST.hold / 2


async def test_strangers_have_nothing_hashed_where_rules_name_a_user_too(tmp_path: Path) -> None:
    mapping = rules({"unix:uid": "4242", "unix:sha256": DIGEST}, {"unix:uid": "0"})
    executables = Executables(SystemClock())
    attestors = [UnixAttestor(executables)]
    async with front_door(tmp_path, attestors=attestors, rules=mapping, timing=FAST) as door:
        assert await ask(door.path) == "spiffe://example.org/r1"
        assert executables._looking._process is None
