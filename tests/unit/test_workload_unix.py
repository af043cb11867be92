"""The unix attestor and the looker that opens executables for it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sds.clock import Instant, SystemClock
from sds.errors import PeerGoneError, WorkloadError
from sds.workload import looker
from sds.workload.entitlement import Selector
from sds.workload.executables import ExecutableLimits, Executables
from sds.workload.peer import Peer
from sds.workload.unix import EXECUTABLE_TYPES, UnixAttestor
from sds.workload.unmapped_ids import UnmappedIds, unmapped_ids
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BINARY = Path(sys.executable).resolve()
DIGEST = hashlib.sha256(BINARY.read_bytes()).hexdigest()
REQUEST = {"most": 1 << 30, "mounts": looker.MOST_MOUNTS_BYTES, "digest": None}


@pytest.fixture
def ourselves() -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs, Peer.of(ours) as peer:
        yield peer


@contextlib.contextmanager
def executing(program: Path) -> Iterator[Peer]:
    with subprocess.Popen([program, "60"]) as process:
        try:
            yield Peer(
                pid=process.pid, uid=0, gid=0, groups=frozenset(), pidfd=None, start_time=None
            )
        finally:
            process.kill()


class LaterClock(SystemClock):
    """A clock so far ahead that every file has settled."""

    def now(self) -> Instant:
        here = super().now()
        wall = datetime.now(UTC) + timedelta(days=1)
        return Instant(wall=wall, monotonic=here.monotonic, boottime=here.boottime)


class PastClock(SystemClock):
    """A clock that stands at the last change of our executable, which has not settled then."""

    def now(self) -> Instant:
        here = super().now()
        wall = datetime.fromtimestamp(BINARY.stat().st_ctime, UTC)
        return Instant(wall=wall, monotonic=here.monotonic, boottime=here.boottime)


class SetClock(SystemClock):
    """A clock whose wall time the test sets."""

    wall = datetime.fromtimestamp(0, UTC)

    def now(self) -> Instant:
        here = super().now()
        return Instant(wall=self.wall, monotonic=here.monotonic, boottime=here.boottime)


class Hashed(Executables):
    """Counts what the hashing looker is asked."""

    def __init__(self, clock: SystemClock, limits: ExecutableLimits | None = None) -> None:
        super().__init__(clock, limits)
        self.count = 0
        real = self._hashing.ask

        async def ask(request: dict[str, Any], seconds: float, *, size: int = 0) -> dict[str, Any]:
            self.count += 1
            return await real(request, seconds, size=size)

        self._hashing.ask = ask  # type: ignore[method-assign]


@pytest.fixture
async def executables() -> AsyncIterator[Executables]:
    found = Executables(SystemClock())
    yield found
    await found.aclose()


async def test_user_groups_and_executable(ourselves: Peer, executables: Executables) -> None:
    facts = await UnixAttestor(executables).attest(ourselves, EXECUTABLE_TYPES)
    expected = {
        Selector("unix:uid", str(os.geteuid())),
        Selector("unix:gid", str(os.getegid())),
        Selector("unix:path", str(BINARY)),
        Selector("unix:sha256", DIGEST),
        *(Selector("unix:supplementary-gid", str(group)) for group in os.getgroups()),
    }
    assert facts.selectors == expected
    assert not facts.unknown


async def test_groups_that_are_too_many_are_unknown(
    ourselves: Peer, executables: Executables
) -> None:
    """No rule on groups is decided then; rules on the user are."""
    ourselves.groups = None
    facts = await UnixAttestor(executables).attest(ourselves, frozenset({"unix:path"}))
    with refused("too_many_facts", match="1024 groups"):
        raise facts.unknown["unix:supplementary-gid"]
    assert facts.values("unix:uid") == {str(os.geteuid())}
    assert facts.values("unix:path") == {str(BINARY)}


async def test_nothing_is_read_where_no_rule_asks_for_executables(
    ourselves: Peer, executables: Executables
) -> None:
    facts = await UnixAttestor(executables).attest(ourselves, frozenset())
    assert not EXECUTABLE_TYPES & {selector.type for selector in facts.selectors}
    assert executables._looking._process is None


async def test_a_rule_on_the_path_alone_has_nothing_hashed(
    ourselves: Peer, executables: Executables
) -> None:
    facts = await UnixAttestor(executables).attest(ourselves, frozenset({"unix:path"}))
    assert facts.values("unix:path") == {str(BINARY)}
    assert executables._hashing._process is None


def test_a_path_that_is_not_utf8_is_text_all_the_same(tmp_path: Path) -> None:
    """It goes into answers, statuses and logs."""
    program = tmp_path / os.fsdecode(b"x\xff\xfe")
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "60"])
    try:
        found = looker.answer(REQUEST | {"pid": process.pid})
    finally:
        process.kill()
        process.wait()
    assert (
        found["path"].encode() == bytes(tmp_path / "x") + 2 * "\N{REPLACEMENT CHARACTER}".encode()
    )


def test_a_process_with_very_many_mounts_is_not_read_to_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(REQUEST, "mounts", 0)
    monkeypatch.setattr(looker, "MOST_MOUNTS_BYTES", 0)
    monkeypatch.setattr(looker, "_line", lambda *_: b"no such mount")
    found = looker.answer(REQUEST | {"pid": os.getpid()})
    assert "too many mounts" in found["error"]


@pytest.mark.parametrize("kind", ["fuse", "fuse.sshfs", "fuseblk", "fuseblk.exfat", "virtiofs"])
def test_no_file_is_read_that_a_program_may_serve(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """libfuse puts the program's name behind a dot, for block devices too (``subtype``)."""
    monkeypatch.setattr(looker, "_kind_of_mount", lambda *_: kind)
    found = looker.answer(REQUEST | {"pid": os.getpid()})
    assert f"FUSE file system ({kind})" in found["error"]


async def test_a_file_is_hashed_once_when_it_has_settled(ourselves: Peer) -> None:
    with_clock = Hashed(LaterClock())
    assert await with_clock.read(ourselves, digest=True) == await with_clock.read(
        ourselves, digest=True
    )
    assert with_clock.count == 1
    await with_clock.aclose()


async def test_a_file_changed_a_moment_ago_is_hashed_again(ourselves: Peer) -> None:
    with_clock = Hashed(PastClock())
    await with_clock.read(ourselves, digest=True)
    await with_clock.read(ourselves, digest=True)
    assert with_clock.count == 2
    await with_clock.aclose()


async def test_a_file_whose_change_lies_ahead_is_hashed_once_now_and_once_then(
    ourselves: Peer,
) -> None:
    """Before, each connection had it hashed while the clock was set back, until none was left."""
    clock = SetClock()
    hashed = Hashed(clock, ExecutableLimits(look_seconds=60))
    changed = BINARY.stat().st_ctime
    for wall, count in ((changed - 3600, 1), (changed, 3), (changed + 3600, 4)):
        clock.wall = datetime.fromtimestamp(wall, UTC)
        for _ in range(2):
            await hashed.read(ourselves, digest=True)
        assert hashed.count == count
    await hashed.aclose()


async def test_a_file_whose_content_claims_to_be_of_the_future_is_hashed_once(
    tmp_path: Path,
) -> None:
    """As images have them that were built by a clock that is ahead; anybody may claim so."""
    program = tmp_path / "program"
    shutil.copy("/bin/sleep", program)
    ahead = datetime.now(UTC) + timedelta(days=3650)
    os.utime(program, (ahead.timestamp(), ahead.timestamp()))
    hashed = Hashed(LaterClock(), ExecutableLimits(look_seconds=60))
    with executing(program) as peer:
        for _ in range(2):
            await hashed.read(peer, digest=True)
    assert hashed.count == 1
    await hashed.aclose()


async def test_many_callers_are_looked_at_cheaply(
    ourselves: Peer, executables: Executables
) -> None:
    first = await executables.read(ourselves, digest=True)
    all_of_them = [executables.read(ourselves, digest=True) for _ in range(250)]
    assert set(await asyncio.gather(*all_of_them)) == {first}


async def test_a_file_that_is_too_large(ourselves: Peer) -> None:
    small = Executables(SystemClock(), ExecutableLimits(largest=1000))
    with closing(ourselves), pytest.raises(WorkloadError, match="more than 1000") as caught:
        await small.read(ourselves, digest=False)
    assert caught.value.reason == "executable_refused"
    await small.aclose()


async def test_an_owner_has_a_budget_that_grows_back(ourselves: Peer) -> None:
    size = BINARY.stat().st_size
    clock = PastClock()  # so that no digest is remembered
    limits = ExecutableLimits(burst=2 * size, rate=1)
    limited = Executables(clock, limits)
    for _ in range(2):
        await limited.read(ourselves, digest=True)
    for _ in range(3):
        with pytest.raises(WorkloadError, match="its budget for hashing") as caught:
            await limited.read(ourselves, digest=True)
        assert caught.value.reason == "executable_late"
        assert caught.value.retriable
    ourselves.owner = "another"
    assert (await limited.read(ourselves, digest=True)).sha256 == DIGEST
    await limited.aclose()


async def test_being_many_owners_buys_one_budget_more(
    ourselves: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sds.workload.executables._OWNERS", 5)
    size = BINARY.stat().st_size
    limited = Hashed(PastClock(), ExecutableLimits(burst=size, rate=1))
    refused = 0
    for number in range(20):
        ourselves.owner = f"uid {number}"
        try:
            await limited.read(ourselves, digest=True)
        except WorkloadError:
            refused += 1
    assert (limited.count, refused) == (6, 14)
    assert len(limited._owners) == 6
    await limited.aclose()


async def test_a_looker_that_dies_is_replaced(ourselves: Peer, executables: Executables) -> None:
    await executables.read(ourselves, digest=True)
    process = executables._looking._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(WorkloadError, match="cannot run"):
        await executables.read(ourselves, digest=True)
    assert (await executables.read(ourselves, digest=True)).path == str(BINARY)


async def test_a_looker_that_hangs_is_killed_and_its_owner_waits(ourselves: Peer) -> None:
    patient = ExecutableLimits(look_seconds=30)  # a process starts in it, also on a busy machine
    hanging = Executables(SystemClock(), patient)
    await hanging.read(ourselves, digest=False)
    hanging.limits = ExecutableLimits(look_seconds=0.3)
    process = hanging._looking._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(WorkloadError, match="no answer in") as caught:
        await hanging.read(ourselves, digest=False)
    assert caught.value.reason == "executable_late"
    ourselves.owner = "another"
    hanging.limits = patient
    assert (await hanging.read(ourselves, digest=False)).path == str(BINARY)
    await hanging.aclose()
    assert process.returncode == -signal.SIGKILL


async def test_a_caller_that_goes_leaves_no_answer_for_the_next(
    ourselves: Peer, executables: Executables
) -> None:
    await executables.read(ourselves, digest=True)
    for _ in range(50):
        look = asyncio.create_task(executables.read(ourselves, digest=True))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        look.cancel()
    assert (await executables.read(ourselves, digest=True)).sha256 == DIGEST


async def test_a_process_that_executes_another_file_is_nobody_from_then_on(
    tmp_path: Path, executables: Executables
) -> None:
    """Not even if that file is the one that a rule names."""
    first, second = (Path(shutil.copy("/bin/bash", tmp_path / name)) for name in ("a", "b"))
    script = f"read; exec {second} -c 'read; exec {first} -c read'"
    with (
        subprocess.Popen([first, "-c", script], stdin=subprocess.PIPE) as process,  # noqa: ASYNC220
        Peer(
            pid=process.pid, uid=0, gid=0, groups=frozenset(), pidfd=os.pidfd_open(process.pid)
        ) as peer,
    ):
        assert process.stdin is not None
        attestor = UnixAttestor(executables)
        found = []
        for path in (first, second, first):
            while Path(f"/proc/{process.pid}/exe").readlink() != path:
                await asyncio.sleep(0.01)
            facts = await attestor.attest(peer, EXECUTABLE_TYPES)
            assert not facts.unknown
            found.append(facts.values("unix:path"))
            process.stdin.write(b"\n")
            process.stdin.flush()
    assert found == [{str(first)}, frozenset(), frozenset()]


async def test_a_process_that_has_ended(executables: Executables) -> None:
    with subprocess.Popen(["/bin/true"]) as process:  # noqa: ASYNC220
        pidfd = os.pidfd_open(process.pid)
    peer = Peer(pid=process.pid, uid=0, gid=0, groups=frozenset(), pidfd=pidfd)
    with peer, pytest.raises(PeerGoneError):
        await executables.read(peer, digest=False)


async def test_a_process_that_proc_hides_has_not_ended(
    ourselves: Peer, executables: Executables
) -> None:
    """With hidepid, /proc has no directory of another user's process."""
    ourselves.pid = 2**22 + 1
    with refused("executable_unreadable", match="hidepid"):
        await executables.read(ourselves, digest=False)


async def test_an_id_that_stands_for_everybody_outside_our_namespace_is_nobody_s(
    ourselves: Peer, executables: Executables
) -> None:
    """A rootless agent sees every other user of the machine as 65534."""
    groups = ourselves.groups = frozenset({4711, ourselves.gid})
    unmapped = UnmappedIds(uid=ourselves.uid, gid=ourselves.gid)
    facts = await UnixAttestor(executables, unmapped=unmapped).attest(ourselves, frozenset())
    assert set(facts.unknown) == {"unix:uid", "unix:gid"}
    assert {error.reason for error in facts.unknown.values()} == {"peer_credentials"}
    assert len(groups) == 2
    assert facts.selectors == {Selector("unix:supplementary-gid", "4711")}


@pytest.mark.parametrize(
    ("mapped", "nobody"),
    [
        ("         0          0 4294967295\n", None),
        ("         0       1000          1\n         1     100000      65536\n", 65534),
        ("", 65534),
    ],
)
def test_which_ids_stand_for_everybody(tmp_path: Path, mapped: str, nobody: int | None) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "sys" / "kernel").mkdir(parents=True)
    for kind in ("uid", "gid"):
        (tmp_path / "self" / f"{kind}_map").write_text(mapped)
        (tmp_path / "sys" / "kernel" / f"overflow{kind}").write_text("65534\n")
    assert unmapped_ids(tmp_path) == UnmappedIds(uid=nobody, gid=nobody)


def test_the_path_is_that_of_the_file_that_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that executes another file during the look must not keep the path of the first."""
    first, second = (Path(shutil.copy("/bin/bash", tmp_path / name)) for name in ("a", "b"))
    with subprocess.Popen(
        [first, "-c", f"read; exec {second} -c read"], stdin=subprocess.PIPE
    ) as process:
        stdin = process.stdin
        assert stdin is not None
        link, opened = Path(f"/proc/{process.pid}/exe"), os.open
        while link.readlink() != first:
            time.sleep(0.01)

        def late(path: str, flags: int) -> int:
            if path == str(link) and link.readlink() == first:
                stdin.write(b"\n")
                stdin.flush()
                while link.readlink() != second:
                    time.sleep(0.01)
            return opened(path, flags)

        monkeypatch.setattr(os, "open", late)
        said = looker.answer(REQUEST | {"pid": process.pid})
        assert said["error"] == "its process executed another file meanwhile"
        monkeypatch.undo()
        again = looker.answer(REQUEST | {"pid": process.pid})
        assert again["path"] == str(second)
