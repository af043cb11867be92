"""Tables whose size others choose, which give their memory back.

A ``dict`` of CPython never shrinks while entries are removed: one that had 2,000 keeps 100 KB when
it has one left. A client that fills table after table, and empties each again, would hold what
nobody counts. Owns :class:`SlimDict`. Invariant: a table takes memory in proportion to what is in
it, and removing costs the same on average as from any other.
"""

from __future__ import annotations

from typing import TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")
_FEW = 64
"""Entries whose table is not worth making anew."""
_PART = 8


class SlimDict(dict[_K, _V]):
    """A dict that is made anew, in place, once most of what was in it is gone.

    Use ``del`` and :meth:`take`; other ways of removing leave the table as it is.
    """

    __slots__ = ("_most",)

    def __init__(self) -> None:
        """Empty."""
        super().__init__()
        self._most = _FEW

    def __delitem__(self, key: _K) -> None:
        """Remove an entry.

        Raises:
            KeyError: there is none.
        """
        super().__delitem__(key)
        self._removed()

    def take(self, key: _K) -> _V | None:
        """Remove an entry; its value, None if there is none."""
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
