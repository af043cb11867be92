"""What callers wait for, in a fair order: each owner in turn, whoever asks for how much.

Owns the queue of :mod:`sds.attestation.collateral.publishing`. Invariants: at most :data:`MOST`
things wait; if there is one more, the owner who waits for the most loses the latest of its own;
owners take turns, so nobody's first thing waits for more than one of each other owner; a thing that
several owners want is given once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

MOST: Final = 256


class WantedByOwners:
    """The things that are wanted, by owner."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, OrderedDict[str, None]] = OrderedDict()
        """Each owner's things, the oldest first; the owner whose turn is next comes first."""
        self._size = 0
        self._some = asyncio.Event()

    def __len__(self) -> int:
        """Return how many things wait, each as often as there are owners who want it."""
        return self._size

    def add(self, thing: str, owner: str) -> None:
        """Let a thing wait, unless its owner waits for the most and there is no room."""
        if thing in self._of.get(owner, ()):
            return
        self._of.setdefault(owner, OrderedDict())[thing] = None
        self._size += 1
        if self._size > MOST:
            heaviest = max(self._of, key=lambda one: len(self._of[one]))
            self._drop(heaviest, next(reversed(self._of[heaviest])))
        self._some.set()

    async def next(self) -> str:
        """Wait for a thing, and take it."""
        while not self._of:
            self._some.clear()
            await self._some.wait()
        owner, things = next(iter(self._of.items()))
        self._of.move_to_end(owner)
        thing = next(iter(things))
        for one in [each for each, wanted in self._of.items() if thing in wanted]:
            self._drop(one, thing)
        return thing

    def _drop(self, owner: str, thing: str) -> None:
        del self._of[owner][thing]
        self._size -= 1
        if not self._of[owner]:
            del self._of[owner]
