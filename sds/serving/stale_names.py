"""Looks up names again after a change, for all callers, a few in each turn of the loop.

A rotation or a change of policy makes names stale, and clients choose how many there are. Owns the
order in which callers' names are looked up again. Invariants: at most
:data:`~sds.serving.slices.SLICE` names and conversations are handled in one turn; a caller with
many names waits longer for its last one, and no other caller waits for it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from sds.faults import guarded
from sds.serving.slices import SLICE

if TYPE_CHECKING:
    from sds.serving.session import CallerSession

_EACH: Final = 20
"""How many names of one caller are handled before the next caller's."""


class NameLookUps:
    """Runs the look-ups of all callers in turns."""

    def __init__(self) -> None:
        self._row: OrderedDict[CallerSession, None] = OrderedDict()
        self._handle: asyncio.Handle | None = None

    def add(self, stale: CallerSession) -> None:
        """Add a caller that has stale names."""
        self._row.setdefault(stale)
        self._expect()

    def remove(self, stale: CallerSession) -> None:
        """Remove a caller that is gone."""
        self._row.pop(stale, None)

    def close(self) -> None:
        """Stop all look-ups."""
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
