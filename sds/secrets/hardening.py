"""The process that holds keys: no dumps, no swap, no reading by others, freed memory overwritten.

Owns what a process does to itself before the first key is made. Invariants: everything is tried,
and what the system refuses is said once; nothing here is needed for the program to work. Freed
memory is overwritten only if that was settled before anything else: see
:mod:`sds.secrets.allocator`.
"""

from __future__ import annotations

import ctypes
import os
import resource
from typing import Final

from sds.secrets.allocator import is_wiping

_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4

_libc: Final = ctypes.CDLL(None, use_errno=True)


def harden(*, wiping: bool = True) -> tuple[str, ...]:
    """Protect this process; returns what could not be had, a sentence each.

    ``wiping`` False: this process does not want the third, since it retires no keys.

    1. No core file (RLIMIT_CORE) and no dump by anybody (PR_SET_DUMPABLE; it also takes
       ``/proc/PID/mem`` and ptrace away from processes of the same user). After the exec, which
       resets it.
    2. No page of ours in swap (mlockall), only where the limit lets memory grow: a locked process
       that cannot grow would fail in the middle of its work.
    3. Freed memory overwritten (:mod:`sds.secrets.allocator`).
    """
    missing = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        missing.append("memory can be dumped: PR_SET_DUMPABLE was refused")
    if (problem := _lock()) is not None:
        missing.append(problem)
    if wiping and not is_wiping(os.environ):
        missing.append("freed memory is not overwritten")
    return tuple(missing)


def _lock() -> str | None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY and soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        soft = hard
    if soft != resource.RLIM_INFINITY and not _may_lock():
        return (
            f"memory is not locked and may be swapped: RLIMIT_MEMLOCK is {soft // 1024} KiB; keys "
            "themselves are locked as far as it goes (give CAP_IPC_LOCK, or LimitMEMLOCK=infinity)"
        )
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return f"memory is not locked and may be swapped: {os.strerror(ctypes.get_errno())}"
    return None


def _may_lock() -> bool:
    """CAP_IPC_LOCK (bit 14 of the effective set, capabilities(7)): the limit does not count."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123  before pathlib is loaded
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 14 & 1)
    return False
