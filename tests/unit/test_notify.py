import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from sds.operations.notify import READY, notify


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    abstract: bool,  # noqa: FBT001  a case
) -> None:
    name = f"attested-sds-test-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        notify(READY)
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_nobody_to_tell_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify(READY)


def test_a_service_manager_that_stands_still_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        manager.settimeout(5)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
            others.setblocking(False)  # noqa: FBT003  the socket's own method
            waiting = 0
            with contextlib.suppress(BlockingIOError):
                while others.sendto(b"full", name):
                    waiting += 1
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify(READY)  # returns
        assert {manager.recv(100) for _ in range(waiting)} == {b"full"}
        assert manager.recv(100) == b"READY=1"  # it is told once it goes on


async def test_that_a_process_is_ready_is_said_until_it_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without descriptors for a moment, a unit would be starting for ever, and others with it."""
    name = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    notify(f"{READY}\nSTATUS=ready", again=0.01)
    notify("STATUS=late", again=0.01)
    await asyncio.sleep(0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)  # noqa: FBT003  the socket's own method
        manager.bind(name)
        async with asyncio.timeout(5):
            said = await asyncio.get_running_loop().sock_recv(manager, 100)
        assert said == b"READY=1"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.get_running_loop().sock_recv(manager, 100)
