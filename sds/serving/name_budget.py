"""The memory of names that clients ask for, bounded for each owner and for all together.

A name that is watched costs far more than its characters: a dozen objects remember what was sent,
ACKed and refused under it. Owns that count. An owner is a pod, or a user outside pods, so a user
gains nothing by many processes (:mod:`sds.transport.budget`). Invariants: an owner that stays
within its guaranteed share is never refused, however much others use; beyond that share, all owners
together stay within one bound, and each within its own; a stream that ends gives back what it used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sds.errors import LimitError

NAME_OVERHEAD: Final = 640
"""Bytes of memory that one watched name takes beside its characters; measured: 500."""


_WIDE: Final = 8
"""Bytes of a character of text that is not ASCII: one is enough for 4 bytes each, and such text is
kept as UTF-8 too once it was sent."""
_TEXT_OVERHEAD: Final = 64


def _length(text: str) -> int:
    return len(text) if text.isascii() else _WIDE * len(text)


def text_cost(text: str) -> int:
    """Return the bytes of memory that a client's text takes; nothing takes none."""
    return _length(text) + _TEXT_OVERHEAD if text else 0


def name_cost(name: str) -> int:
    """Return the bytes of memory that a watched name takes."""
    return _length(name) + NAME_OVERHEAD


@dataclass(frozen=True, slots=True, kw_only=True)
class NameLimits:
    """The most bytes that names may take, overhead included.

    Attributes:
        owner: for one owner, over all its connections.
        guaranteed: for one owner, even while others have used up ``everybody``.
        everybody: for all owners together.
    """

    owner: int = 16 * 1024 * 1024
    guaranteed: int = 256 * 1024
    everybody: int = 64 * 1024 * 1024


class NameBudget:
    """Counts the bytes of names that each owner's streams watch."""

    def __init__(self, limits: NameLimits) -> None:
        self._limits = limits
        self._held: dict[str, int] = {}
        self._total = 0

    def held(self, owner: str) -> int:
        """Return the bytes that one owner uses."""
        return self._held.get(owner, 0)

    def take(self, owner: str, size: int) -> None:
        """Add bytes to an owner's count.

        Raises:
            LimitError: that is too many; they count all the same until they are given back.
        """
        held = self._held[owner] = self._held.get(owner, 0) + size
        self._total += size
        limits = self._limits
        if held > limits.owner or (held > limits.guaranteed and self._total > limits.everybody):
            raise LimitError(
                f"{owner} asks for names that take {held} bytes of memory",
                advice=f"at most {limits.owner} bytes for one pod or user and {limits.everybody} "
                "for all; ask for fewer names",
            )

    def give_back(self, owner: str, size: int) -> None:
        """Subtract the bytes of names that are no longer watched."""
        left = self._held.get(owner, 0) - size
        self._total -= size
        if left > 0:
            self._held[owner] = left
        else:
            self._held.pop(owner, None)
