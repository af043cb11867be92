"""The selectors of all Services, bounded in bytes for each namespace and for all together.

Owns :class:`Selectors`. Whoever may edit a namespace makes as many Services there as they like, and
a tenant may have many namespaces; every agent keeps what they wrote. Invariants: where there is too
much in a namespace, or in all together, the one with the most in it is *overfull*: none of its
selectors is kept, so that large namespaces take nothing from small ones; an overfull namespace
takes the same little memory, however many Services it has.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_MIB: Final = 1 << 20
MOST_OF_A_NAMESPACE: Final = 4 * _MIB
"""The most bytes of one namespace: 5,000 Services with two labels each. To compare a pod with 8,000
small ones takes 2 ms."""
MOST: Final = 12 * _MIB
"""The most bytes of all namespaces: 10,000 Services with three labels each."""
_ROOM: Final = MOST // 16
"""How many bytes are made free at once: to look for the largest namespaces takes long."""
_SERVICE_BYTES: Final = 400
_LABEL_BYTES: Final = 120
"""Bytes of memory of a Service and of a label beside their texts, which are ASCII; measured."""

ServiceName = tuple[str, str]
"""Namespace and name of a Service."""


@dataclass(slots=True, kw_only=True)
class _Namespace:
    """The Services of one namespace.

    Attributes:
        selectors: by name; none if it is overfull.
        size: the bytes that they take, or would take. If it is overfull, changed selectors are not
            counted: what they were is not known any more.
    """

    selectors: dict[str, Mapping[str, str]] = field(default_factory=dict)
    size: int = field(default=0, compare=False)


def _size(name: ServiceName, selector: Mapping[str, str]) -> int:
    """Return the bytes of memory of a Service; 0 if it selects no pod."""
    if not selector:
        return 0
    texts = sum(len(key) + len(value) + _LABEL_BYTES for key, value in selector.items())
    return _SERVICE_BYTES + len(name[1]) + texts


class Selectors:
    """The selectors by namespace and name."""

    def __init__(self) -> None:
        self._kept: dict[str, _Namespace] = {}
        self._overfull: dict[str, _Namespace] = {}
        self._size = 0

    @property
    def overfull(self) -> frozenset[str]:
        """Return the namespaces of which no selector is kept."""
        return frozenset(self._overfull)

    @property
    def may_be_whole(self) -> bool:
        """Say whether a list would find room for an overfull namespace.

        There must be far more room than it needs, so that nobody causes many lists.
        """
        room = min(MOST_OF_A_NAMESPACE // 2, MOST * 3 // 4 - self._size)
        # Asked at each change: where there is no room, the namespaces are not gone through.
        return room >= 0 and any(each.size <= room for each in self._overfull.values())

    @property
    def namespaces(self) -> int:
        """Return of how many namespaces something is known."""
        return len(self._kept) + len(self._overfull)

    def same_as(self, other: Selectors) -> bool:
        """Say whether the other has the same selectors."""
        return self._kept == other._kept and self._overfull.keys() == other._overfull.keys()

    def put(self, name: ServiceName, selector: Mapping[str, str], *, is_new: bool) -> bool:
        """Add or change a Service, and say if anything changed that is kept.

        Args:
            name: the Service.
            selector: its selector; an empty one selects no pod.
            is_new: whether it was added and not changed.
        """
        size = _size(name, selector)
        there = self._overfull.get(name[0])
        if there is not None:
            there.size += size if is_new else 0
            return False
        if not size:
            return self.remove(name, selector)
        there = self._kept.setdefault(name[0], _Namespace())
        before = there.selectors.get(name[1], {})
        self._grow(there, size - _size(name, before))
        if before != selector:
            there.selectors[name[1]] = dict(selector)
        return self._give_way(name[0]) or before != selector

    def remove(self, name: ServiceName, selector: Mapping[str, str]) -> bool:
        """Forget a Service, which had this selector last, and say whether it was kept."""
        there = self._overfull.get(name[0])
        if there is not None:
            there.size -= _size(name, selector)
            return False
        there = self._kept.get(name[0], _Namespace())
        before = there.selectors.pop(name[1], None)
        if before is None:
            return False
        self._grow(there, -_size(name, before))
        if not there.selectors:
            del self._kept[name[0]]
        return True

    def selecting(
        self, namespace: str, labels: Mapping[str, str], *, most: int
    ) -> frozenset[ServiceName]:
        """Return at most so many Services whose selector these labels satisfy."""
        there = self._kept.get(namespace, _Namespace())
        found = (
            (namespace, name)
            for name, selector in there.selectors.items()
            if selector.items() <= labels.items()
        )
        return frozenset(itertools.islice(found, most))

    def _grow(self, there: _Namespace, size: int) -> None:
        there.size += size
        self._size += size

    def _give_way(self, namespace: str) -> bool:
        """Keep nothing of the largest namespaces if there is too much; say if that was done."""
        if self._kept[namespace].size > MOST_OF_A_NAMESPACE:
            self._drop(namespace)
            return True
        if self._size <= MOST:
            return False
        for largest in sorted(self._kept, key=lambda each: -self._kept[each].size):
            self._drop(largest)
            if self._size <= MOST - _ROOM:
                break
        return True

    def _drop(self, namespace: str) -> None:
        there = self._kept.pop(namespace)
        self._size -= there.size
        there.selectors.clear()
        self._overfull[namespace] = there
