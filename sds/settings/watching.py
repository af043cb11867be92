"""Watches a folder for changes of the files in it (inotify).

Owns the loop around the kernel's events. Invariants: no change is missed: a change before the
kernel was asked to watch counts too, and watching that fails begins again; a folder that does not
answer blocks a thread and not the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.backoff import Backoff, Retry
from sds.outside import words_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
_DEBOUNCE_MS: Final = 50
_FIRST_LOOK_MS: Final = 500
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
    # Measured: 5 MB and 40 ms, which an agent that follows no files saves.
    import watchfiles  # noqa: PLC0415

    retry, said = Retry(clock, _RETRY), ""
    while True:
        began = True
        try:
            # The library starts its work on the event loop.
            await threads.alone("watch", folder.stat)
            watching = watchfiles.awatch(
                folder,
                recursive=False,
                debounce=_DEBOUNCE_MS,
                step=_DEBOUNCE_MS,
                rust_timeout=_FIRST_LOOK_MS,
                yield_on_timeout=True,
            )
            async with contextlib.aclosing(watching):
                async for changes in watching:
                    # A change before the kernel was asked to watch has no event, so the first
                    # timeout without an event is also a reason to look.
                    if changes or began:
                        changed()
                    if began:
                        began, said = False, ""
                        retry.succeeded()
                    if _went(
                        folder,
                        [path for kind, path in changes if kind is watchfiles.Change.deleted],
                    ):
                        break  # the folder itself was moved or removed; another may take its place
        except (OSError, RuntimeError) as error:
            if words_of(error) != said:
                said = words_of(error)
                _LOGGER.warning(
                    "watching %s failed, so it is read every minute: %s",
                    folder,
                    said,
                    extra={"origin": str(folder)},
                )
        await retry.pause()


def _went(folder: Path, deleted: Iterable[str]) -> bool:
    """Return whether the folder itself is among what was deleted or moved away."""
    itself = folder.absolute()
    return any(Path(path).absolute() == itself for path in deleted)
