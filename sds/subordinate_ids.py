"""Which user IDs are one user: those that the system delegates to one user count as one owner.

A user who has subordinate IDs (subuid(5)) may act as each of them (newuidmap(1)): 65,536 by
default. If each had a budget of its own, one user could fill what all users share. Owns what
``/etc/subuid`` says, as this process sees it. Invariants: the file is read again as soon as it
changes; what cannot be read or understood delegates nothing; an ID that nobody delegates is an
owner of its own.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from bisect import bisect_right
from pathlib import Path
from typing import Final

from sds.files import read_file
from sds.untrusted_input import EXHAUSTED, words_of

_LOG: Final = logging.getLogger("sds.subordinate_ids")
_MOST_BYTES: Final = 4 * 1024 * 1024
_LINE: Final = re.compile(rb"^([^:\n]+):([0-9]{1,10}):([0-9]{1,10})[ \t]*$", re.MULTILINE)
_OF_RUNTIMES: Final = frozenset({b"root", b"0", b"kubelet", b"containers", b"lxd", b"dockremap"})
"""Whose ranges root's programs divide among pods and containers: LXD, Docker, the kubelet
(``hostUsers: false``), CRI-O and Podman (``--userns=auto``). Nobody may act as all of them."""


def delegated_ranges(content: bytes) -> list[tuple[int, int, str]]:
    """Return the first and last ID of each range that a user has, with the name of the owner.

    They are sorted, and none overlaps another. All ranges of one user have one owner, who is named
    by the lowest; users whose ranges overlap can act as one another, and are one owner too.

    Args:
        content: of ``/etc/subuid``.
    """
    found = sorted(
        (int(first), int(first) + int(count) - 1, user)
        for user, first, count in _LINE.findall(content)
        if user not in _OF_RUNTIMES and int(count)
    )
    same: dict[bytes, bytes] = {}
    merged: list[tuple[int, int, bytes]] = []
    for first, last, user in found:
        if merged and first <= merged[-1][1]:
            begin, end, other = merged[-1]
            merged[-1] = (begin, max(end, last), other)
            if (one := _first(same, user)) != (both := _first(same, other)):
                same[one] = both
        else:
            merged.append((first, last, user))
    names: dict[bytes, str] = {}
    return [
        (first, last, names.setdefault(_first(same, user), f"uid {first}-{last}"))
        for first, last, user in merged
    ]


def _first(same: dict[bytes, bytes], user: bytes) -> bytes:
    """Return the one who stands for all users that are the same as this one."""
    found = user
    while found in same:
        found = same[found]
    if found != user:
        same[user] = found
    return found


class SubordinateIds:
    """The ranges that one file names."""

    def __init__(self, path: Path) -> None:
        """Read nothing before somebody asks."""
        self._path = path
        self._version: tuple[int, ...] | None = None
        self._ranges: list[tuple[int, int, str]] = []

    def owner(self, uid: int) -> str:
        """Return the name of the owner as which this user counts: ``uid NUMBER``, or a range."""
        self._follow()
        at = bisect_right(self._ranges, uid, key=lambda one: one[0]) - 1
        if at >= 0 and uid <= self._ranges[at][1]:
            return self._ranges[at][2]
        return f"uid {uid}"

    def _follow(self) -> None:
        """Read the file if it has changed."""
        try:
            now = os.stat(self._path)  # noqa: PTH116  for each connection, so it must cost little
        except OSError:
            self._version, self._ranges = None, []
            return
        version = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
        if version == self._version:
            return
        try:
            self._ranges = delegated_ranges(read_file(self._path, max_bytes=_MOST_BYTES))
        except OSError as error:
            if error.errno in EXHAUSTED:
                return  # what it said before counts until it can be read
            self._ranges = []
            if error.errno != errno.ENOENT:
                _LOG.warning(
                    "cannot read who has which subordinate IDs, so each of them counts as a user",
                    extra={"path": str(self._path), "why": words_of(error)},
                )
        self._version = version


OF_THIS_SYSTEM: Final = SubordinateIds(Path("/etc/subuid"))


def owner_of_user(uid: int) -> str:
    """Return the name of the owner as which a user outside pods counts."""
    return OF_THIS_SYSTEM.owner(uid)
