"""Watches a folder for changes of the files in it (inotify).

Owns the loop around the kernel's events. Invariant: nothing is missed: what changed before the
kernel was asked to watch counts as a change, and watching that fails begins again. A folder that
does not answer is waited for in a thread, and not on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from sds import threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
_DEBOUNCE_MS: Final = 50
_FIRST_LOOK_MS: Final = 500
_RETRY_SECONDS: Final = 1.0
_LOOK_EVERY: Final = 60.0


async def follow_folders(
    folders: Iterable[Path],
    asked: asyncio.Event,
    look: Callable[[], Awaitable[None]],
    *,
    clock: Clock,
) -> None:
    """Look after every event in the folders, when asked and every minute, until cancelled.

    Args:
        folders: as for :func:`watch_folder`.
        asked: set by events, and by whoever wants a look at once.
        look: reads again what is there.
        clock: time.
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

    Name the parent of a file: a replaced file has another inode, and a swapped symlink (as
    Kubernetes makes it) is the parent's.
    """
    # Measured: 5 MB and 40 ms that an agent with nothing to follow does not pay.
    import watchfiles  # noqa: PLC0415

    while True:
        began = True
        try:
            # The library begins on the event loop.
            await threads.alone("watch", folder.stat)
            async for changes in watchfiles.awatch(
                folder,
                recursive=False,
                debounce=_DEBOUNCE_MS,
                step=_DEBOUNCE_MS,
                rust_timeout=_FIRST_LOOK_MS,
                yield_on_timeout=True,
            ):
                # What changed before the kernel was asked to watch has no event: the first time
                # without one is a reason to look, too.
                if changes or began:
                    changed()
                began = False
        except (OSError, RuntimeError) as error:
            _LOGGER.warning(
                "watching %s failed, it is looked at every minute: %s",
                folder,
                error,
                extra={"origin": str(folder)},
            )
        await clock.sleep(_RETRY_SECONDS)
