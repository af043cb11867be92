import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path

import pytest

from sds.clock import Instant, SystemClock
from sds.errors import PeerGoneError
from sds.workload import unix as unix_module
from sds.workload.entitlement import Selector
from sds.workload.peer import Peer
from sds.workload.unix import EXECUTABLE_TYPES, ExecutableReader, UnixAttestor

BINARY = Path(sys.executable).resolve()


@pytest.fixture
def ourselves() -> Iterator[Peer]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer.of(ours)
        yield peer
        peer.close()


class LaterClock(SystemClock):
    """A clock so far ahead that every file has settled."""

    def now(self) -> Instant:
        wall = datetime.now(UTC) + timedelta(days=1)
        return Instant(wall=wall, monotonic=0, boottime=0)


async def test_user_groups_and_executable(ourselves: Peer) -> None:
    facts = await UnixAttestor(ExecutableReader(SystemClock())).attest(ourselves, EXECUTABLE_TYPES)
    expected = {
        Selector("unix:uid", str(os.geteuid())),
        Selector("unix:gid", str(os.getegid())),
        Selector("unix:path", str(BINARY)),
        Selector("unix:sha256", hashlib.sha256(BINARY.read_bytes()).hexdigest()),
        *(Selector("unix:supplementary-gid", str(group)) for group in os.getgroups()),
    }
    assert facts.selectors == expected
    assert not facts.unknown


async def test_nothing_is_read_where_no_rule_asks_for_executables(ourselves: Peer) -> None:
    facts = await UnixAttestor(ExecutableReader(SystemClock())).attest(ourselves, frozenset())
    assert not {"unix:path", "unix:sha256"} & {selector.type for selector in facts.selectors}


async def test_a_file_is_hashed_once_when_it_has_settled(
    ourselves: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[object] = []
    real = unix_module._sha256

    def counting(file: FileIO) -> str:
        hashed.append(file)
        return real(file)

    monkeypatch.setattr(unix_module, "_sha256", counting)
    reader = ExecutableReader(LaterClock())
    assert await reader.read(ourselves.pid) == await reader.read(ourselves.pid)
    assert len(hashed) == 1


async def test_a_file_changed_a_moment_ago_is_hashed_again(
    ourselves: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Past(SystemClock):
        def now(self) -> Instant:
            return Instant(wall=datetime.fromtimestamp(0, UTC), monotonic=0, boottime=0)

    hashed: list[object] = []

    def counting(file: FileIO) -> str:
        hashed.append(file)
        return "00"

    monkeypatch.setattr(unix_module, "_sha256", counting)
    reader = ExecutableReader(Past())
    await reader.read(ourselves.pid)
    await reader.read(ourselves.pid)
    assert len(hashed) == 2


async def test_a_file_system_that_its_user_can_forge_is_refused(
    ourselves: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_module, "_filesystem_type", lambda _: 0x65735546)
    facts = await UnixAttestor(ExecutableReader(SystemClock())).attest(ourselves, EXECUTABLE_TYPES)
    assert not facts.selectors
    why = facts.why_unknown("unix:uid")
    assert why is not None
    assert why.reason == "executable_unreadable"


async def test_no_such_process() -> None:
    with pytest.raises(PeerGoneError):
        await ExecutableReader(SystemClock()).read(2**22 + 1)
