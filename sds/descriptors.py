"""How many file descriptors this process may have, and why it accepts none from clients.

Owns the limit, the size of the kernel's table of descriptors, and the refusal of descriptors that
clients pass (``SCM_RIGHTS``). Invariants: the table is as large as a crowd needs before the first
caller connects; if the kernel can refuse passed descriptors, it does.

The kernel enlarges the table when a number has no place in it yet. In a process with threads, each
enlargement waits for all processors (``expand_fdtable`` calls ``synchronize_rcu``): 6 to 22 ms, at
256, 512 and 1,024 descriptors, in the middle of a crowd.

The kernel closes a passed descriptor on behalf of the receiver, even if the receiver never asked
for it. The sender chooses how long that takes, by ``SO_LINGER`` on a TCP socket whose other end
reads nothing (socket(7), unix(7)).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import logging
import os
import resource
import socket
from typing import Final

_LOGGER: Final = logging.getLogger(__name__)
SO_PASSRIGHTS: Final = 83
"""<asm-generic/socket.h>, since Linux 6.16; Python's socket module does not name it."""

TABLE: Final = 16_384
"""The places of the table (8 bytes each in the kernel); more descriptors enlarge it later."""


def take_all() -> int:
    """Raise the limit as far as possible, make the table large, and return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _enlarge_table(min(hard, TABLE))
    return hard


def _enlarge_table(places: int) -> None:
    """Enlarge the table by opening a descriptor with a high number; the table never shrinks."""
    reading, writing = os.pipe()
    try:
        os.close(fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, places - 1))
    finally:
        os.close(reading)
        os.close(writing)


def refuse_passed(listener: socket.socket) -> None:
    """Let nobody pass descriptors (unix(7), SCM_RIGHTS) to what is accepted on this Unix socket.

    Call it before the socket listens: each connection takes it over when it is made.
    """
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        _say_once()


@functools.cache
def _say_once() -> None:
    _LOGGER.warning(
        "this kernel has no SO_PASSRIGHTS: anyone who can open a socket of ours can hold up the "
        "process by passing it a descriptor that takes long to close",
        extra={"since": "Linux 6.16"},
    )
