"""What was worked out under names that clients make up, within a bound of memory.

Invariant: however many names clients ask for, one after the other or at once, what is remembered
of them takes no more than its bound; what was used last stays.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Hashable

_V = TypeVar("_V")


class Remembered(Generic[_V]):
    """The values that were used last.

    Args:
        most: bytes of all together.
    """

    __slots__ = ("_held", "_most", "_values")

    def __init__(self, most: int) -> None:
        """Nothing is remembered."""
        self._most = most
        self._held = 0
        self._values: OrderedDict[Hashable, tuple[_V, int]] = OrderedDict()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._values)

    def get(self, key: Hashable) -> _V | None:
        """The value, which was used now; None if it is not (or no longer) known."""
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: _V, size: int) -> None:
        """Remember a value of ``size`` bytes, and forget what was not used for the longest time."""
        before = self._values.pop(key, None)
        if before is not None:
            self._held -= before[1]
        self._values[key] = (value, size)
        self._held += size
        while self._held > self._most:
            _, (_, freed) = self._values.popitem(last=False)
            self._held -= freed

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._held = 0
