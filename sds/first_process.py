"""Lets a signal end this process, also as the first one of a container.

The kernel drops signals for the first process of a PID namespace unless it has a handler
(pid_namespaces(7)), so what ends any other process would be lost, and the container would run on
until it is killed. Invariant: a signal that is let through ends the process at once, with the exit
status that a shell gives for it (a signal itself could not).
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from types import FrameType

_FIRST: Final = 1
_BY_SIGNAL: Final = 128
"""What a shell adds to the number of the signal that ended a process."""


def is_first() -> bool:
    """Say whether this is the first process of a container."""
    return os.getpid() == _FIRST


def let_end(number: int) -> None:
    """Let the signal with this number end the process at once; in the main thread."""
    signal.signal(number, _end if is_first() else signal.SIG_DFL)


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(_BY_SIGNAL + number)
