"""One definition of readiness, and what tells it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sds.agent import socket_guard
from sds.agent.health import HealthReporter
from sds.agent.socket_guard import PERIOD_SECONDS, REMEMBERED_SECONDS, SocketGuard
from sds.agent.state_reader import UnservedIdentities
from sds.errors import SocketError
from sds.operations.notify import readiness_notifier
from sds.operations.readiness import Readiness, agent_readiness
from sds.secrets.store import SecretStore
from sds.unix_sockets import EVERYBODY, OURS_ALONE, file_at, listening
from sds.workload.entitlement import Caller, Entitlement
from tests.support.clock import FakeClock
from tests.support.serving import API, WEB, svid

WHOLE = "spiffe://example.org/web"


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ({}, ()),
        ({"unserved": [WHOLE]}, (f"no certificate yet: {WHOLE}",)),
        ({"unserved": list("abcde")}, ("no certificate yet: a, b, c and 2 more",)),
        ({"no_policy": "it expired"}, ("no policy is in force: it expired",)),
        ({"lost_sockets": ["/x"]}, ("somebody removed or replaced: /x",)),
        ({"draining": True}, ("the agent is draining",)),
    ],
)
def test_everything_that_is_missing_is_said(
    lacks: dict[str, list[str]], said: tuple[str, ...]
) -> None:
    found = agent_readiness(**{"unserved": [], **lacks})  # type: ignore[arg-type]
    assert found.lacking == said
    assert found.ready is (not said)


def test_identities_are_followed_through_loss_and_policy() -> None:
    store = SecretStore()
    callers = [Caller(name="a", selectors=frozenset(), identities=(one,)) for one in (WEB, API)]
    entitlements = [Entitlement(caller) for caller in callers]
    unserved = UnservedIdentities(entitlements, store)
    assert len(unserved.spiffe_ids) == 2
    store.put_svid(svid(WEB))
    assert unserved.spiffe_ids == [str(API.spiffe_id)]
    store.put_svid(svid(API))
    assert unserved.spiffe_ids == []
    store.withdraw_svid(WEB)
    assert unserved.spiffe_ids == [str(WEB.spiffe_id)]
    entitlements[0].replace(Caller(name="a", selectors=frozenset(), identities=()))
    assert unserved.spiffe_ids == []


@pytest.mark.parametrize(
    "how", ["replaced", "removed", "a directory", "a full directory", "many times"]
)
async def test_a_socket_that_somebody_replaces_is_noticed_and_put_back(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "s.sock"
    clock = FakeClock()
    guard = SocketGuard(clock=clock, keep=tmp_path / "keep")
    with guard.making(path) as place:
        made = listening(place, OURS_ALONE)
    with made as ours:
        ours.settimeout(5)
        changes: list[tuple[str, ...]] = []
        running = asyncio.create_task(guard.run(lambda: changes.append(guard.lost)))
        await clock.advance(PERIOD_SECONDS)
        assert changes == []
        for _ in range(3 if how == "many times" else 1):
            path.unlink()
            if "directory" in how:
                path.mkdir()
                if how == "a full directory":
                    (path / "file").touch()
            elif how != "removed":
                with socket.socket(socket.AF_UNIX) as again:
                    again.bind(str(path))
            await clock.advance(PERIOD_SECONDS)
            assert changes == [(str(path),)]
        # What is not empty is somebody's: the socket stays lost until it goes.
        if how == "a full directory":
            (path / "file").unlink()
            await clock.advance(PERIOD_SECONDS)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            ours.accept()[0].close()
        await clock.advance(REMEMBERED_SECONDS + PERIOD_SECONDS)
        assert changes == [(str(path),), ()]
        running.cancel()
        guard.close()
        assert not list((tmp_path / "keep").iterdir())
        assert path.exists()


async def test_what_another_agent_keeps_is_neither_put_back_nor_removed(tmp_path: Path) -> None:
    """Somebody removed the run directory, and another agent has it now."""
    path, keep = tmp_path / "s.sock", tmp_path / "keep"
    guards = []
    with contextlib.ExitStack() as owned:
        for _ in range(2):
            path.unlink(missing_ok=True)
            shutil.rmtree(keep, ignore_errors=True)
            guards.append(SocketGuard(clock=FakeClock(), keep=keep))
            with guards[-1].making(path) as place:
                owned.enter_context(listening(place, OURS_ALONE))
        before, after = guards
        path.unlink()
        before.look()
        assert not path.exists()
        before.close()
        after.look()
        assert path.exists()


@pytest.mark.parametrize("what", ["a listening socket", "a file", "a link", "a full directory"])
async def test_what_is_in_a_sockets_place_at_the_start_is_replaced_and_reported(
    tmp_path: Path, what: str
) -> None:
    """Whoever can write to the directory keeps no agent from starting, and is not trusted."""
    path, elsewhere = tmp_path / "s.sock", tmp_path / "elsewhere"
    elsewhere.touch(mode=0o600)
    clock = FakeClock()
    guard = SocketGuard(clock=clock, keep=tmp_path / "keep")
    with contextlib.ExitStack() as owned:
        if what == "a listening socket":
            owned.enter_context(listening(path, OURS_ALONE))
        elif what == "a file":
            path.touch()
        elif what == "a link":
            path.symlink_to(elsewhere)
        else:
            (path / "file").mkdir(parents=True)
        with guard.making(path) as place:
            ours = owned.enter_context(listening(place, EVERYBODY))
        assert guard.lost == (str(path),)
        if what == "a full directory":
            (path / "file").rmdir()
            guard.look()
        client = owned.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(path))
        ours.settimeout(5)
        ours.accept()[0].close()
        assert elsewhere.stat().st_mode & 0o777 == 0o600
        assert path.lstat().st_mode & 0o777 == EVERYBODY
        await clock.advance(REMEMBERED_SECONDS)
        assert guard.look()
        assert not guard.lost


@pytest.mark.parametrize("there", ["nothing", "ours", "another link", "a file"])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_link_is_made_and_watched_like_a_socket(
    tmp_path: Path, there: str, *, keeps: bool
) -> None:
    link = tmp_path / "socket"
    if there == "a file":
        link.touch()
    elif there != "nothing":
        link.symlink_to("s.sock" if there == "ours" else "elsewhere")
    guard = SocketGuard(clock=FakeClock(), keep=tmp_path / "keep" if keeps else None)
    guard.link(link, "s.sock")
    assert str(link.readlink()) == "s.sock"
    assert bool(guard.lost) is (keeps and there in ("another link", "a file"))
    link.unlink()
    link.symlink_to("elsewhere")
    guard.look()
    assert guard.lost == (str(link),)
    assert str(link.readlink()) == ("s.sock" if keeps else "elsewhere")


def test_a_link_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "socket").mkdir()
    with pytest.raises(SocketError, match=r"the link .*socket cannot be made"):
        SocketGuard(clock=FakeClock()).link(tmp_path / "socket", "s.sock")


def test_a_socket_has_no_public_name_before_it_is_finished(tmp_path: Path) -> None:
    """Whoever can write to the directory could exchange it before we know which one is ours."""
    path = tmp_path / "s.sock"
    guard = SocketGuard(clock=FakeClock(), keep=tmp_path / "keep")
    with guard.making(path) as place:
        made = listening(place, EVERYBODY)
        assert not path.exists()
    with made:
        assert file_at(path) == guard.file(path) == file_at(place)
        assert not guard.lost


@pytest.mark.parametrize("why", ["links", "another mount", "another file system"])
def test_a_socket_that_can_have_one_name_only_is_made_all_the_same(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, keep = tmp_path / "s.sock", tmp_path / "keep"
    if why == "links":

        def link(*_: object, **__: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    else:
        keep = Path(tempfile.mkdtemp(dir="/dev/shm"))
    if why == "another file system":

        def opening(*_: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(socket_guard, "open", opening, raising=False)  # before Linux 5.14
    try:
        guard = SocketGuard(clock=FakeClock(), keep=keep)
        with guard.making(path) as place:
            made = listening(place, EVERYBODY)
        with made, socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert "cannot be put back if somebody removes it" in caplog.text
            assert not guard.lost
            path.unlink()
            assert guard.look()
    finally:
        shutil.rmtree(keep)


async def test_where_a_socket_cannot_be_put_back_it_is_reported_all_the_same(
    tmp_path: Path,
) -> None:
    path = tmp_path / "s"
    clock = FakeClock()
    guard = SocketGuard(clock=clock)
    with guard.making(path) as place:
        made = listening(place, OURS_ALONE)
    with made:
        path.unlink()
        assert guard.look()
        assert guard.lost == (str(path),)
        await clock.advance(2 * REMEMBERED_SECONDS)
        assert not guard.look()


def test_the_service_manager_hears_ready_once_and_every_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        told = readiness_notifier()
        told(Readiness(("no certificate yet: a\nREADY=1",)))
        told(Readiness())
        told(Readiness(("the agent is draining",)))
        told(Readiness())
        heard = [manager.recv(200).decode() for _ in range(4)]
    assert heard == [
        "STATUS=not ready: no certificate yet: a READY=1",
        "READY=1\nSTATUS=ready",
        "STATUS=not ready: the agent is draining",
        "STATUS=ready",
    ]


class Told:
    """The health of a socket; the first time that it serves, telling it fails."""

    def __init__(self, *, fails: bool) -> None:
        self.serving: bool | None = None
        self.fails = fails

    def tell(self, *, serving: bool) -> None:
        if serving and self.fails:
            self.fails = False
            raise ZeroDivisionError("on purpose")
        self.serving = serving


async def test_a_fault_while_health_is_told_loses_no_change() -> None:
    """The task starts again, and nothing else would change soon."""
    store, first, second = SecretStore(), Told(fails=True), Told(fails=False)

    def listening(name: str, told: Told) -> Any:
        return SimpleNamespace(path=Path(name), health=told)

    def socket_of(name: str, told: Told) -> Any:
        caller = Caller(name=name, selectors=frozenset(), identities=(WEB,))
        return SimpleNamespace(entitlement=Entitlement(caller), listening=listening(name, told))

    reporter = HealthReporter(
        store=store,
        people=listening("admin", Told(fails=False)),
        sockets=[socket_of("first", first), socket_of("second", second)],
        readiness=Readiness,
        told=lambda _: None,
    )
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0)
    assert (first.serving, second.serving) == (False, False)
    store.put_svid(svid(WEB))
    with pytest.raises(ZeroDivisionError):
        await running
    again = asyncio.create_task(reporter.run())
    await asyncio.sleep(0)
    assert (first.serving, second.serving) == (True, True)
    again.cancel()


def test_a_directory_of_second_names_that_cannot_be_emptied_is_said(tmp_path: Path) -> None:
    (tmp_path / "keep" / "of somebody").mkdir(parents=True)
    with pytest.raises(SocketError, match="keep cannot be emptied: Is a directory"):
        SocketGuard(clock=FakeClock(), keep=tmp_path / "keep")
