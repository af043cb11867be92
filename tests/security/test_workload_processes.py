"""Real processes at the front door: other users, other executables, and every trick with pids.

What a process can and cannot do with its connection is stated in docs/kubernetes.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from sds.clock import SystemClock
from sds.workload.executables import ExecutableLimits, Executables
from sds.workload.recognition import Timing
from sds.workload.unix import UnixAttestor
from tests.support import need
from tests.support.front_door import executed, front_door, rules, unix, until
from tests.support.process import output, running

pytestmark = [pytest.mark.e2e, pytest.mark.root]

CLIENT = Path(__file__).resolve().parents[1] / "support" / "door_client.py"
PYTHON = Path(sys.executable).resolve()
FAST = Timing(hold=5, retry_first=0.02, retry_most=0.1, recheck=0.1, linger=0)
R0 = "spiffe://example.org/r0"


@pytest.fixture(autouse=True)
def _root() -> None:
    need.root()


@pytest.fixture
def client(shared: Path) -> list[str]:
    """The command line of a client whose executable lies in our folder."""
    return [str(executable(shared / "good")), "-S", str(CLIENT)]


def executable(path: Path, tail: bytes = b"") -> Path:
    """A copy of this Python at ``path``; a tail gives it another digest."""
    shutil.copy(PYTHON, path)
    with path.open("ab") as file:
        file.write(tail)
    return path


ENVIRONMENT = {"PYTHONHOME": sys.base_prefix}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_another_user_with_its_groups(shared: Path, client: list[str]) -> None:
    mapping = rules({"unix:uid": "4242", "unix:gid": "4243"}, {"unix:supplementary-gid": "7"})
    async with front_door(
        shared,
        attestors=unix(),
        rules=mapping,
        timing=FAST,
    ) as door:
        said = [
            await output([*client, str(door.path), "ask", *more], env=ENVIRONMENT)
            for more in (
                ["--uid", "4242", "--gid", "4243"],
                ["--uid", "4243", "--gid", "4242", "--groups", "7,9"],
                ["--uid", "4243", "--gid", "4242", "--groups", ""],
            )
        ]
    answers = [out.rpartition(" is ")[2] for _, out, _ in said]
    assert answers == [R0, "spiffe://example.org/r1", "refused"], said


async def test_another_executable_at_the_same_path(shared: Path, client: list[str]) -> None:
    path = Path(client[0])
    mapping = rules({"unix:path": str(path), "unix:sha256": digest(path)})
    async with front_door(shared, attestors=unix(), rules=mapping, timing=FAST) as door:
        command = [*client, str(door.path), "ask"]
        assert R0 in (await output(command, env=ENVIRONMENT))[1]
        path.unlink()
        executable(path, b"changed")
        assert "refused" in (await output(command, env=ENVIRONMENT))[1]
        path.unlink()
        executable(path)
        assert R0 in (await output(command, env=ENVIRONMENT))[1]


async def test_a_running_process_keeps_its_identity_when_its_file_is_replaced(
    shared: Path, client: list[str]
) -> None:
    path = Path(client[0])
    mapping = rules({"unix:path": str(path), "unix:sha256": digest(path)})
    async with (
        front_door(shared, attestors=unix(), rules=mapping, timing=FAST) as door,
        running(
            [*client, str(door.path), "hold"], env=ENVIRONMENT, stdin=asyncio.subprocess.PIPE
        ) as process,
    ):
        await process.line(f"is {R0}")
        path.unlink()
        executable(path, b"an upgrade")
        await asyncio.sleep(3 * FAST.recheck)
        await process.tell()
        await process.line(f"again {R0}")


async def test_a_process_that_executes_another_program_loses_the_identity(
    shared: Path, client: list[str]
) -> None:
    path, other = Path(client[0]), executable(shared / "other", b"other")
    mapping = rules({"unix:sha256": digest(path)})
    async with (
        front_door(shared, attestors=unix(), rules=mapping, timing=FAST) as door,
        executed(door, client, other, name=R0) as process,
    ):
        # Its connection lives, because the process does; it is nobody now. What it asked before
        # the next look at it may still have been answered: docs/kubernetes.md says so.
        await process.line("after exec")
        await until(lambda: not door.keeper.kept)


@pytest.mark.parametrize("how", ["too large", "no budget"])
async def test_a_process_that_executes_a_program_that_is_not_read_loses_the_identity(
    shared: Path, client: list[str], how: str
) -> None:
    """Otherwise it would be its choice that what it runs is unknown, and it kept what it had."""
    path, other = Path(client[0]), executable(shared / "other", b"other")
    size = path.stat().st_size
    os.truncate(other, 4 * size)
    largest = 2 * size if how == "too large" else 8 * size
    executables = Executables(SystemClock(), ExecutableLimits(largest=largest, burst=2 * size))
    mapping = rules({"unix:sha256": digest(path)})
    async with (
        front_door(
            shared, attestors=[UnixAttestor(executables)], rules=mapping, timing=FAST
        ) as door,
        executed(door, client, other, name=R0),
    ):
        await until(lambda: not door.keeper.kept)


async def test_a_child_that_inherits_the_connection_lives_no_longer_than_its_parent(
    shared: Path, client: list[str]
) -> None:
    mapping = rules({"unix:uid": "0"})
    async with (
        front_door(
            shared,
            attestors=unix(),
            rules=mapping,
            timing=FAST,
        ) as door,
        running(
            [*client, str(door.path), "fork"], env=ENVIRONMENT, stdin=asyncio.subprocess.PIPE
        ) as process,
    ):
        await process.line(f"pid {process.pid} is {R0}")
        await process.line(f"child {R0}")
        await process.tell()
        await process.line("then closed")
        await until(lambda: not door.door.connections)


async def test_a_connection_given_to_another_process_is_its_makers(
    shared: Path, client: list[str]
) -> None:
    """It speaks for whoever connected, as long as that one lives, and for nobody after."""
    mapping = rules({"unix:uid": "4242"}, {"unix:uid": "*"})
    channel = str(shared / "channel.sock")
    async with (
        front_door(
            shared,
            attestors=unix(),
            rules=mapping,
            timing=FAST,
        ) as door,
        running([*client, "-", "receive", channel], env=ENVIRONMENT) as receiver,
    ):
        await receiver.line("listening")
        Path(channel).chmod(0o666)
        async with running(
            [*client, str(door.path), "pass", channel, "--uid", "4242"],
            env=ENVIRONMENT,
            stdin=asyncio.subprocess.PIPE,
        ) as giver:
            await giver.line(f"is {R0}")
            await receiver.line(f"received {R0}")
            await giver.tell()
            await giver.wait()
            await receiver.line("then closed")


async def test_a_pid_that_is_used_again_never_speaks_for_the_dead(shared: Path) -> None:
    """In a PID namespace of its own; see tests/support/pid_reuse.py."""
    unshare = need.tool("unshare")
    program = CLIENT.with_name("pid_reuse.py")
    status, out, err = await output(
        [
            unshare,
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            sys.executable,
            str(program),
            str(shared),
            str(executable(shared / "victim")),
        ],
        env={"PYTHONPATH": str(need.ROOT)},
        seconds=120,
    )
    assert status == 0, out + err
    assert "reused 40 of 40, recognised 0" in out, out + err
