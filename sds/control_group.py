"""Reads what our own control group allows.

Owns the memory limit. Invariants: a file that cannot be read means no limit; any bytes in a group's
name are accepted.

Sources: cgroups(7); Linux ``Documentation/admin-guide/cgroup-v2.rst``, "memory.max"; "memory.high":
a process that exceeds it is not killed but slowed down to a standstill.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_UNLIMITED: Final = 1 << 60
"""From this value on there is no limit: v1 then says the largest multiple of a page."""


def memory_limit(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the lowest memory limit of our control groups (v2 and v1) in bytes, or None.

    Args:
        root: the directory where the hierarchies are mounted.
        own: the file that lists the groups of this process.
    """
    limits = []
    names: tuple[str, ...]
    with contextlib.suppress(OSError):
        # Only a line feed ends a line: a group's name may have any other byte.
        for line in os.fsdecode(own.read_bytes()).split("\n"):
            _, _, rest = line.partition(":")
            controllers, colon, path = rest.partition(":")
            if not colon:
                continue
            if controllers == "":
                folders, names = [root, root / "unified"], ("memory.max", "memory.high")
            elif "memory" in controllers.split(","):
                folders, names = [root / "memory"], ("memory.limit_in_bytes",)
            else:
                continue
            # In a control-group namespace the path is "/", and the limit is there.
            groups = [Path(path), *Path(path).parents]
            limits += [
                limit
                for folder in folders
                for group in groups
                for name in names
                if (limit := _limit(folder / str(group).lstrip("/") / name)) is not None
            ]
    return min((limit for limit in limits if limit < _UNLIMITED), default=None)


def _limit(file: Path) -> int | None:
    try:
        text = file.read_bytes().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
