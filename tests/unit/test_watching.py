"""Watching a folder: what cannot be watched is said once, and tried again at growing intervals."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sds.clock import SystemClock
from sds.settings import folder_events
from sds.settings.folder_events import watched as really_watched
from sds.settings.watching import watch_folder
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO


class QuickClock(SystemClock):
    async def sleep(self, seconds: float) -> None:
        del seconds
        await asyncio.sleep(0.01)


async def test_where_the_kernel_watches_no_more_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """fs.inotify.max_user_instances is used up by others, for as long as they like."""
    clock, tried, heard = FakeClock(), list[float](), [0]
    works = False

    def watched(folder: Path) -> FileIO:
        tried.append(clock.now().monotonic)
        if not works:
            raise OSError(24, "Too many open files")
        return really_watched(folder)

    async def here(_: str, work: Callable[..., Any], *args: Any) -> Any:
        return work(*args)

    def changed() -> None:
        heard[0] += 1

    monkeypatch.setattr("sds.settings.watching.watched", watched)
    monkeypatch.setattr("sds.threads.alone", here)
    watching = asyncio.create_task(watch_folder(tmp_path, changed, clock=clock))
    try:
        await clock.until(lambda: tried[-1:] > [1_600.0], seconds=2_000)
        assert len(caplog.records) == 1
        assert max(after - before for before, after in itertools.pairwise(tried)) <= 61
        assert len(tried) < 40
        assert not heard[0]
        works = True
        await clock.until(lambda: heard[0] == 1, seconds=100)
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


async def test_a_folder_that_is_replaced_is_watched_on(tmp_path: Path) -> None:
    """As when a new version of a directory takes the place of the old one."""
    folder, heard = tmp_path / "watched", [0]
    folder.mkdir()

    def changed() -> None:
        heard[0] += 1

    async def until(count: int) -> None:
        while heard[0] < count:
            (folder / "file").write_text(str(heard))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch_folder(folder, changed, clock=QuickClock()))
    try:
        await until(1)
        folder.rename(tmp_path / "old")
        folder.mkdir()
        # It went; the new one is looked at; and each change in it is heard.
        await until(heard[0] + 4)
    finally:
        watching.cancel()
        await asyncio.wait([watching])


async def test_a_watch_keeps_no_thread(tmp_path: Path) -> None:
    """A library that cannot start a thread of its own may end the process."""

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before, heard = threads(), [0]

    def changed() -> None:
        heard[0] += 1

    watching = asyncio.create_task(watch_folder(tmp_path, changed, clock=QuickClock()))
    try:
        async with asyncio.timeout(10):
            while not heard[0]:
                await asyncio.sleep(0.01)
            while threads() > before:  # that which found the folder ends
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.wait([watching])


def test_a_limit_of_the_kernel_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kernel's own words for it are "No space left on device"."""

    def used_up(*_: Any) -> int:
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(folder_events._libc, "inotify_add_watch", used_up)
    with pytest.raises(OSError, match=r"fs\.inotify\.max_user_watches is used up"):
        really_watched(tmp_path)


def test_a_folder_that_is_missing_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        really_watched(tmp_path / "nowhere")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_watch_that_nobody_takes_is_closed_without_a_word(tmp_path: Path) -> None:
    """Whoever asked for it was cancelled while a thread opened it; a warning would be an error."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    really_watched(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
