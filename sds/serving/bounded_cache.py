"""A cache of values for names that clients make up, bounded in memory.

Invariant: however many names clients ask for, one after the other or at once, the cache takes no
more memory than its bound; the values that were used last stay.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

_V = TypeVar("_V")


class BoundedCache(Generic[_V]):
    """Keeps the values that were used last.

    Args:
        most: the most bytes of all values together.
    """

    __slots__ = ("_held", "_most", "_values")

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._values: OrderedDict[Hashable, tuple[_V, int]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many values are in the cache."""
        return len(self._values)

    def get(self, key: Hashable) -> _V | None:
        """Return the value and mark it as used; None if the cache does not have it."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: _V, size: int) -> None:
        """Keep a value of ``size`` bytes, and drop the values that were used least recently."""
        before = self._values.pop(key, None)
        if before is not None:
            self._held -= before[1]
        self._values[key] = (value, size)
        self._held += size
        while self._held > self._most:
            _, (_, freed) = self._values.popitem(last=False)
            self._held -= freed

    def clear(self) -> None:
        """Empty the cache."""
        self._values.clear()
        self._held = 0
