"""Watches a folder for changes of the files in it (inotify).

Owns the loop around the kernel's events. Invariants: no change is missed: a change before the
kernel was asked to watch counts too, and watching that fails begins again; a folder that does not
answer blocks a thread and not the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.backoff import Backoff, Retry
from sds.faults import guarded
from sds.settings.folder_events import watched, went
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from io import FileIO
    from pathlib import Path

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
_DEBOUNCE_SECONDS: Final = 0.05
_RETRY: Final = Backoff(first=1.0, longest=60.0)
_LOOK_EVERY: Final = 60.0


async def follow_folders(
    folders: Iterable[Path],
    asked: asyncio.Event,
    look: Callable[[], Awaitable[None]],
    *,
    clock: Clock,
) -> None:
    """Call ``look`` after every event in the folders, when asked and every minute, until cancelled.

    Args:
        folders: the folders, as for :func:`watch_folder`.
        asked: is set by events, and by callers that want ``look`` called at once.
        look: reads the files again.
        clock: gives the time.
    """
    async with asyncio.TaskGroup() as tasks:
        for folder in folders:
            watch = watch_folder(folder, asked.set, clock=clock)
            tasks.create_task(watch, name=f"watch {folder}")
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    await asked.wait()
            asked.clear()
            await look()


async def watch_folder(folder: Path, changed: Callable[[], None], *, clock: Clock) -> None:
    """Call ``changed`` after every event in the folder, until cancelled.

    To watch a file, name its parent: a replaced file has another inode, and a swapped symlink (as
    Kubernetes makes it) is an entry of the parent.
    """
    retry, said = Retry(clock, _RETRY), ""
    while True:
        try:
            # Finding the folder may block, and so must not happen on the event loop.
            with await threads.alone("watch", watched, folder) as events:
                said = ""
                retry.succeeded()
                changed()  # a change before the kernel was asked to watch has no event
                while True:
                    await _readable(events)
                    await asyncio.sleep(_DEBOUNCE_SECONDS)
                    gone = went(events)
                    changed()
                    if gone:
                        break  # another folder may take its place
        except (OSError, RuntimeError) as error:  # RuntimeError: the system gives no thread now
            if words_of(error) != said:
                said = words_of(error)
                _LOGGER.warning(
                    "watching %s failed, so it is read every minute: %s",
                    folder,
                    said,
                    extra={"origin": str(folder)},
                )
        await retry.pause()


async def _readable(events: FileIO) -> None:
    """Wait for an event."""
    loop, there = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(events, guarded("task", there.set))
    try:
        await there.wait()
    finally:
        loop.remove_reader(events)
