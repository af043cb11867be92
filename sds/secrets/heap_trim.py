"""Returns free memory of the C heap to the system, even if memory is locked.

glibc gives free pages back by ``madvise``, which the kernel refuses for locked pages (madvise(2)).
So this module unlocks the heap, trims it and locks it again. Invariants: pages that hold
keys for long (:mod:`sds.secrets.key_memory`) lie outside the heap and stay locked throughout;
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

    Measured: 8 ms with a heap of 31 MB that was nearly all free, 36 ms with one of 118 MB.

    Only the heap that grows by brk(2) is unlocked for it, for some milliseconds. A copy of a key
    that is just being sent may lie there; it could go to swap only if the kernel took its page in
    these milliseconds.
    """
    trim = getattr(_libc, "malloc_trim", None)
    if trim is None:
        return
    locked = locked_heap(_lines("/proc/self/maps"), _lines("/proc/self/status"))
    if locked is None:
        trim(0)
        return
    _libc.munlock(*_extent(locked))
    try:
        trim(0)
    finally:
        left = heap(_lines("/proc/self/maps")) or locked  # the trim may have moved its end
        if _libc.mlock2(*_extent(left), _MLOCK_ONFAULT) != 0:
            reason = os.strerror(ctypes.get_errno())
            _LOGGER.warning("memory may be swapped from now on", extra={"reason": reason})


def heap(maps: Iterable[str]) -> range | None:
    """Return the addresses of the heap from the lines of ``/proc/PID/maps`` (proc_pid_maps(5))."""
    line = next((line for line in maps if line.rstrip().endswith("[heap]")), None)
    if line is None:
        return None
    start, _, end = line.split(maxsplit=1)[0].partition("-")
    return range(int(start, 16), int(end, 16))


def locked_heap(maps: Iterable[str], status: Iterable[str]) -> range | None:
    """Return the addresses of the heap if it is locked, else None.

    Args:
        maps: as for :func:`heap`.
        status: the lines of ``/proc/PID/status``: ``VmLck`` counts whole mappings, so a heap that
            is larger than all that is locked is not locked.
    """
    found = heap(maps)
    locked = next((int(line.split()[1]) for line in status if line.startswith("VmLck:")), 0)
    return found if found is not None and len(found) <= locked * 1024 else None


def _extent(addresses: range) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    return ctypes.c_void_p(addresses.start), ctypes.c_size_t(len(addresses))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # no such file system: nothing is locked that we could unlock
        return []
