"""Handles SIGHUP: it reloads the files that a process follows, and never ends the process.

Owns the handler. Invariant: if the process ignored SIGHUP before (:mod:`sds.entry` ensures that),
it ignores it again afterwards, so that a reload in the middle of a drain ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_blocks: Final[list[tuple[Callable[[], None], ...]]] = []
"""What each block that runs wants to have called."""
_handling: Final = contextlib.ExitStack()
"""Has the handler while there is a block."""


@contextlib.contextmanager
def on_hangup(*asked: Callable[[], None]) -> Iterator[None]:
    """Call each of these at SIGHUP while the block runs; in the main thread.

    Several blocks may run at once; SIGHUP is for all of them.
    """
    if not _blocks:
        _handling.enter_context(_handled())
    _blocks.append(asked)
    try:
        yield
    finally:
        _blocks.remove(asked)
        if not _blocks:
            _handling.close()


@contextlib.contextmanager
def _handled() -> Iterator[None]:
    """Have a handler while the block runs."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGHUP)

    def reread() -> None:
        for block in _blocks:
            for ask in block:
                ask()

    # Without a handler SIGHUP ends the process, so there is one even without files to read.
    loop.add_signal_handler(signal.SIGHUP, reread)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
