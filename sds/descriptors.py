"""The descriptors that this process may have.

Owns the limit and the size of the kernel's table. Invariant: the table is as large as a crowd needs
before the first caller comes. The kernel enlarges it when a number is used that has no place yet,
and in a process with threads each time waits for all processors (``expand_fdtable`` calls
``synchronize_rcu``): 6 to 22 ms, at 256, 512 and 1,024 descriptors, in the middle of a crowd.
"""

from __future__ import annotations

import fcntl
import os
import resource
from typing import Final

TABLE: Final = 16_384
"""Places of the table (8 bytes each in the kernel); more descriptors enlarge it as they come."""


def take_all() -> int:
    """Raise the limit as far as it goes and make the table large; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    _enlarge_table(min(hard, TABLE))
    return hard


def _enlarge_table(places: int) -> None:
    """A descriptor with a high number makes room for all below; the table never shrinks."""
    reading, writing = os.pipe()
    try:
        os.close(fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, places - 1))
    finally:
        os.close(reading)
        os.close(writing)
