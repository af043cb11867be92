"""Free memory of the C library's heap goes back to the system, also where memory is locked.

glibc gives free pages back by ``madvise``, which the kernel refuses for locked pages (madvise(2)).
Owns the moment between: the heap is unlocked, trimmed and locked again. Invariants: pages that hold
keys for long (:mod:`sds.secrets.memory`) lie outside the heap and stay locked throughout;
a heap that was not locked before is not locked afterwards.
"""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_LOGGER: Final = logging.getLogger(__name__)
_MLOCK_ONFAULT: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


def give_back() -> None:
    """Return free pages of the C heap to the system (glibc; elsewhere nothing happens).

    Only the heap that grows by brk(2) is unlocked for it, for some milliseconds. A copy of a key
    that is just being sent may lie there; it could go to swap only if the kernel took its page in
    these milliseconds.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is None:
        return
    found = locked_heap(_lines("/proc/self/maps"), _lines("/proc/self/status"))
    if found is None:
        trim(0)
        return
    start, size = ctypes.c_void_p(found.start), ctypes.c_size_t(len(found))
    _libc.munlock(start, size)
    try:
        trim(0)
    finally:
        if _libc.mlock2(start, size, _MLOCK_ONFAULT) != 0:
            reason = os.strerror(ctypes.get_errno())
            _LOGGER.warning("memory may be swapped from now on", extra={"reason": reason})


def locked_heap(maps: Iterable[str], status: Iterable[str]) -> range | None:
    """The addresses of the heap, if it is locked.

    Args:
        maps: the lines of ``/proc/PID/maps`` (proc_pid_maps(5)).
        status: those of ``/proc/PID/status``: ``VmLck`` counts whole mappings, so a heap that is
            larger than all that is locked is not locked.
    """
    heap = next((line for line in maps if line.rstrip().endswith("[heap]")), None)
    locked = next((int(line.split()[1]) for line in status if line.startswith("VmLck:")), 0)
    if heap is None:
        return None
    start, _, end = heap.split(maxsplit=1)[0].partition("-")
    found = range(int(start, 16), int(end, 16))
    return found if len(found) <= locked * 1024 else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no such file system: nothing is locked that we could unlock
        return []
