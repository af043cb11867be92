"""Handles SIGHUP: it reloads the files that a process follows, and never ends the process.

Owns the handler. Invariant: if the process ignored SIGHUP before (:mod:`sds.entry` ensures that),
it ignores it again afterwards, so that a reload in the middle of a drain ends nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def on_hangup(*asked: Callable[[], None]) -> Iterator[None]:
    """Call each of these at SIGHUP while the block runs; in the main thread."""
    loop = asyncio.get_running_loop()
    before = signal.getsignal(signal.SIGHUP)

    def reread() -> None:
        for ask in asked:
            ask()

    # Without a handler SIGHUP ends the process, so there is one even without files to read.
    loop.add_signal_handler(signal.SIGHUP, reread)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, before)
