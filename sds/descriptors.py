"""The descriptors that this process may have, and that it takes none from others.

Owns the limit, the size of the kernel's table, and that clients can pass no descriptors.
Invariants: the table is as large as a crowd needs before the first caller comes; what a client
passes is refused where the kernel can do that. The kernel enlarges the table when a number is used
that has no place yet, and in a process with threads each time waits for all processors
(``expand_fdtable`` calls ``synchronize_rcu``): 6 to 22 ms, at 256, 512 and 1,024 descriptors, in
the middle of a crowd. It closes a descriptor that was passed in the name of who receives it, also
where nobody asked for it, and the sender chooses how long that takes: ``SO_LINGER`` of a TCP socket
whose other end reads nothing (socket(7), unix(7)).
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
