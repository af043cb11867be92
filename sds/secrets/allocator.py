"""The allocator of a process that retires keys: what is freed is overwritten.

The C library's allocator overwrites freed memory (``glibc.malloc.perturb``), apart from what its
thread cache keeps (hence ``tcache_count=0``). Python uses that allocator for every object only with
``PYTHONMALLOC=malloc``. Both are read at start, so the program executes itself once more.
Whether it works then is measured, not assumed: :mod:`sds.secrets.hardening`.

Invariants: only ``SDS_WIPING_ALLOCATOR=no`` switches it off, and a value without a meaning is an
error; this module imports only what a bare interpreter has already loaded, because the second start
throws away everything that the first one loaded.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # typing itself takes longer to load than the rest of the first start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

SWITCH: Final = "SDS_WIPING_ALLOCATOR"
_TUNABLES: Final = ("glibc.malloc.perturb=165", "glibc.malloc.tcache_count=0")
_EXECUTED: Final = "_SDS_EXECUTED_AGAIN"
"""Names the process that executed itself again, by its id: exec keeps it, and no child has it."""


def use_wiping_allocator() -> None:
    """Execute this program again with an allocator that overwrites what is freed.

    Call it first of all: everything so far is lost, but for inherited descriptors. Does nothing
    the second time, without glibc, or where ``SDS_WIPING_ALLOCATOR=no`` is set.

    Raises:
        ConfigurationError: ``SDS_WIPING_ALLOCATOR`` has another value than ``yes`` or ``no``.
    """
    if not is_wanted(os.environ):
        return
    changed = wiping_environment(os.environ, process=os.getpid())
    if changed is not None and _is_glibc():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)  # noqa: S606  ourselves


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Say whether the environment asks for the wiping allocator: yes, unless it says ``no``.

    Raises:
        ConfigurationError: the value has no meaning.
    """
    value = environment.get(SWITCH, "yes")
    if not has_meaning(environment):
        from sds.errors import ConfigurationError  # noqa: PLC0415  see the module

        raise ConfigurationError(
            f"the environment variable {SWITCH} is {value[:100]!r}",
            advice="set it to 'yes' or 'no', or leave it out, which means 'yes'",
        )
    return value == "yes"


def has_meaning(environment: Mapping[str, str]) -> bool:
    """Say whether the switch is unset or has a value that is known."""
    return environment.get(SWITCH, "yes") in ("yes", "no")


def wiping_environment(environment: Mapping[str, str], *, process: int) -> dict[str, str] | None:
    """Return the environment in which the C library overwrites freed memory.

    Args:
        environment: the present one.
        process: the id of this process.

    Returns:
        None if it is set already, or this process has executed itself again and the C library
        took the tunables away (as it does from a program with privileges of its file).
    """
    if is_wiping(environment) or environment.get(_EXECUTED) == str(process):
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
        "GLIBC_TUNABLES": ":".join([*kept, *_TUNABLES]),
        _EXECUTED: str(process),
    }


def is_wiping(environment: Mapping[str, str]) -> bool:
    """Say whether a process with this environment overwrites what it frees."""
    tunables = environment.get("GLIBC_TUNABLES", "").split(":")
    return environment.get("PYTHONMALLOC") == "malloc" and all(
        tunable in tunables for tunable in _TUNABLES
    )


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except ValueError:  # a C library that does not know the name
        return False
