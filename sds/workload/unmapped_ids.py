"""The user and the group that stand for everybody whom our user namespace does not map.

An agent in a user namespace of its own (a rootless container) sees every caller from outside that
namespace as one user, 65534, and that user may exist inside too. Owns which IDs those are.
Invariant: an ID that may stand for many is not taken for one user or group.

Source: user_namespaces(7), "Unmapped user and group IDs" and "Defining user and group ID mappings".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_ALL: Final = 2**32 - 1
"""IDs of the initial namespace, which maps each to itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnmappedIds:
    """What the kernel shows in place of an ID that has none here; None where each has one."""

    uid: int | None = None
    gid: int | None = None


def unmapped_ids(proc: Path = _PROC) -> UnmappedIds:
    """Those of our own namespace.

    Raises:
        OSError, ValueError: the kernel does not say.
    """
    return UnmappedIds(
        uid=_unmapped(proc / "self/uid_map", proc / "sys/kernel/overflowuid"),
        gid=_unmapped(proc / "self/gid_map", proc / "sys/kernel/overflowgid"),
    )


def _unmapped(mapped: Path, overflow: Path) -> int | None:
    count = sum(int(line.split()[2]) for line in mapped.read_text(encoding="ascii").splitlines())
    return None if count >= _ALL else int(overflow.read_text(encoding="ascii"))
