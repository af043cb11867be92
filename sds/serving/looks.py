"""Names to look at again after a change, of all callers: some of each in each turn of the loop.

A rotation or a change of policy makes names stale that clients chose, as many as they like. Owns
the order in which callers' names are looked at. Invariants: at most
:data:`~sds.serving.slices.SLICE` names and conversations are looked at in one turn; a caller with
many names waits longer for its last one, and no other caller waits for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final, Protocol

from sds.faults import guarded
from sds.serving.slices import SLICE

_EACH: Final = 20
"""Names of one caller before the next one's."""


class Stale(Protocol):
    """The names of one caller."""

    @property
    def has_stale(self) -> bool:
        """Whether there is one to look at."""
        ...

    def look(self, most: int) -> int:
        """Look at some, at most ``most``; how many that were."""
        ...


class Looks:
    """See the module."""

    def __init__(self) -> None:
        """Nobody has stale names."""
        self._row: OrderedDict[Stale, None] = OrderedDict()
        self._handle: asyncio.Handle | None = None

    def add(self, stale: Stale) -> None:
        """A caller has stale names."""
        self._row.setdefault(stale)
        self._expect()

    def remove(self, stale: Stale) -> None:
        """A caller is gone."""
        self._row.pop(stale, None)

    def close(self) -> None:
        """Look at nothing more."""
        self._row.clear()
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _expect(self) -> None:
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(guarded("listener", self._look))

    def _look(self) -> None:
        self._handle = None
        left = SLICE
        try:
            while self._row and left > 0:
                stale, _ = self._row.popitem(last=False)
                left -= stale.look(min(left, _EACH))
                if stale.has_stale:
                    self._row[stale] = None
        finally:
            if self._row:
                self._expect()
