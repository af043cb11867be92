"""A dict that releases its memory when entries are removed, for data whose amount clients choose.

A ``dict`` of CPython never shrinks while entries are removed: a table that had 2,000 entries still
takes 100 KB when one is left. A client that fills table after table, and empties each again, would
occupy memory that nothing counts. Owns :class:`ShrinkingDict`. Invariant: a table takes memory in
proportion to its entries, and a removal costs on average the same as in any ``dict``.
"""

from __future__ import annotations

from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")
_FEW = 64
"""The number of entries below which a table is not rebuilt."""
_PART = 8


class ShrinkingDict(dict[_K, _V]):
    """A dict that is rebuilt, in place, once most of its entries are gone.

    Use ``del`` and :meth:`take`; other ways to remove entries do not rebuild the table.
    """

    __slots__ = ("_most",)

    def __init__(self) -> None:
        self._most = _FEW

    def __delitem__(self, key: _K) -> None:
        """Remove an entry.

        Raises:
            KeyError: there is no such entry.
        """
        super().__delitem__(key)
        self._removed()

    def take(self, key: _K) -> _V | None:
        """Remove an entry; return its value, or None if there is none."""
        if key not in self:
            return None
        found = super().pop(key)
        self._removed()
        return found

    def _removed(self) -> None:
        size = len(self) + 1
        if size > self._most:
            self._most = size
        elif self._most > _FEW and size * _PART <= self._most:
            kept = list(self.items())
            self.clear()  # gives the table back
            self.update(kept)
            self._most = max(_FEW, len(kept))
