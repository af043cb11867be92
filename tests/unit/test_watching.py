"""Watching a folder: what cannot be watched is said once, and tried again at growing intervals."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING, Any

import watchfiles

from sds.clock import SystemClock
from sds.settings.watching import watch_folder
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest


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

    async def awatch(*_: Any, **__: Any) -> AsyncIterator[set[Any]]:
        tried.append(clock.now().monotonic)
        if not works:
            raise OSError(24, "Too many open files")
        yield set()
        await asyncio.Event().wait()

    async def here(_: str, work: Callable[[], Any]) -> Any:
        return work()

    def changed() -> None:
        heard[0] += 1

    monkeypatch.setattr(watchfiles, "awatch", awatch)
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
