"""The allocator of a process that retires keys: what is freed is overwritten.

Freed memory is overwritten by the C library's own allocator (``glibc.malloc.perturb``, which needs
``tcache_count=0``: what the thread cache keeps is not overwritten) once Python uses it for every
object (``PYTHONMALLOC=malloc``). Both are read at start, so the program executes itself once more.

Invariant: nothing is imported here that a bare interpreter has not loaded already; the first of
the two starts pays for all of it and keeps none.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself takes longer to load than the rest of the first start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

_TUNABLES: Final = "glibc.malloc.perturb=165:glibc.malloc.tcache_count=0"
_MARK: Final = "SDS_WIPING_ALLOCATOR"


def use_wiping_allocator() -> None:
    """Execute this program again with an allocator that overwrites what is freed.

    Call it first of all: everything so far is lost, but for inherited descriptors. Does nothing
    the second time, without glibc, or where ``SDS_WIPING_ALLOCATOR=no`` is set.
    """
    changed = wiping_environment(os.environ)
    if changed is not None and _is_glibc():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)  # noqa: S606  ourselves


def wiping_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """The environment in which freed memory is overwritten, or None where it is set or refused."""
    if environment.get(_MARK) is not None:
        return None
    given = environment.get("GLIBC_TUNABLES", "")
    kept = [
        tunable
        for tunable in given.split(":")
        if tunable and not tunable.startswith(("glibc.malloc.perturb=", "glibc.malloc.tcache_c"))
    ]
    return {
        **environment,
        "PYTHONMALLOC": "malloc",
        "GLIBC_TUNABLES": ":".join([*kept, _TUNABLES]),
        _MARK: "yes",
    }


def is_wiping(environment: Mapping[str, str]) -> bool:
    """Whether the process with this environment overwrites what it frees."""
    return environment.get(_MARK) == "yes"


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except ValueError:  # a C library that does not know the name
        return False
