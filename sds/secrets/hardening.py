"""Protects a process that has keys: no dumps, no swap, no readers, freed memory overwritten.

Owns what a process does to itself before it makes the first key. Invariants: it tries every
protection; it measures which ones are in force instead of assuming it, and ``sds status`` shows
them; the program works without any of them. Overwriting freed memory must be set up before anything
else: see :mod:`sds.secrets.allocator`.
"""

from __future__ import annotations

import ctypes
import os
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.secrets.allocator import SWITCH, is_wanted, is_wiping

if TYPE_CHECKING:
    from collections.abc import Iterator

_PR_SET_DUMPABLE: Final = 4
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_SAMPLE_BYTES: Final = 2048
_SAMPLE: Final = 0x3C

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.malloc.restype = ctypes.c_void_p
_libc.malloc.argtypes = [ctypes.c_size_t]
_libc.free.argtypes = [ctypes.c_void_p]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProtection:
    """Which protections are in force; each text says why one is not, and is empty if it is.

    Attributes:
        no_dumps: no core file, no dump and no tracing by another process of the same user.
        locked: no page of the process goes to swap.
        wiped: freed memory is overwritten.
    """

    no_dumps: str = ""
    locked: str = ""
    wiped: str = ""

    def missing(self, *, retires_keys: bool = True) -> Iterator[str]:
        """Yield a sentence for each protection that is not in force.

        If ``retires_keys`` is False, the process frees no key, so its freed memory does not matter.
        """
        if self.no_dumps:
            yield f"memory can be dumped: {self.no_dumps}"
        if self.locked:
            yield f"memory is not locked and may be swapped: {self.locked}"
        if self.wiped and retires_keys:
            yield f"freed memory is not overwritten: {self.wiped}"


def harden() -> MemoryProtection:
    """Protect this process, and return which protections are in force.

    1. No core file (RLIMIT_CORE) and no dump by anybody (PR_SET_DUMPABLE; it also takes
       ``/proc/PID/mem`` and ptrace away from processes of the same user). After the exec, which
       resets it.
    2. No page of ours in swap (mlockall), only where the limit lets memory grow: a locked process
       that cannot grow would fail in the middle of its work.
    3. Freed memory overwritten (:mod:`sds.secrets.allocator`): looked at only.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    no_dumps = ""
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        no_dumps = "PR_SET_DUMPABLE was refused"
    return MemoryProtection(no_dumps=no_dumps, locked=_lock(), wiped=_wiping())


def _lock() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard == resource.RLIM_INFINITY and soft != hard:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
        soft = hard
    if soft != resource.RLIM_INFINITY and not _may_lock():
        if not can_be_swapped():
            return ""
        return (
            f"RLIMIT_MEMLOCK is {soft // 1024} KiB; keys themselves are locked as far as it "
            "allows (give CAP_IPC_LOCK, or LimitMEMLOCK=infinity)"
        )
    if _libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return os.strerror(ctypes.get_errno())
    return ""


def can_be_swapped() -> bool:
    """Say whether pages of this process can go to swap.

    Containers of users other than root get no capability and lock nothing; Kubernetes gives them no
    swap either (``memory.swap.max`` 0, cgroup v2), and most nodes have none (proc(5), swaps).
    """
    try:
        with open("/proc/swaps", encoding="ascii") as swaps:  # noqa: PTH123  as below
            if len(swaps.readlines()) <= 1:
                return False
        with open("/proc/self/cgroup", encoding="utf-8") as groups:  # noqa: PTH123
            path = next(line[3:].strip() for line in groups if line.startswith("0::"))
        with open(f"/sys/fs/cgroup{path}/memory.swap.max", encoding="ascii") as limit:  # noqa: PTH123
            return limit.read().strip() != "0"
    except (OSError, UnicodeDecodeError, StopIteration):
        return True


def _may_lock() -> bool:
    """Say whether CAP_IPC_LOCK lifts the limit (bit 14 of the effective set, capabilities(7))."""
    try:
        with open("/proc/self/status", "rb") as status:  # noqa: PTH123  before pathlib is loaded
            for line in status:
                if line.startswith(b"CapEff:"):
                    return bool(int(line.split()[1], 16) >> 14 & 1)
    except OSError:
        pass  # no /proc
    return False


def _wiping() -> str:
    if not is_wanted(os.environ):
        return f"{SWITCH} is 'no'"
    if not is_wiping(os.environ):
        return "the C library is not glibc, or it took the tunables away"
    return "" if _overwrites_what_is_freed() else "the C library ignores the tunables"


def _overwrites_what_is_freed() -> bool:
    """Free a piece of memory and look whether its content is gone.

    The piece is too small to be given back to the system, and no other code runs between the two
    calls that could take it. Its first bytes belong to the allocator.
    """
    address = _libc.malloc(_SAMPLE_BYTES)
    ctypes.memset(address, _SAMPLE, _SAMPLE_BYTES)
    _libc.free(address)
    return bytes([_SAMPLE]) * 16 not in ctypes.string_at(address, _SAMPLE_BYTES)
