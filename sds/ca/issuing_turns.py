"""Gives turns at deciding and signing to machines, one after the other.

Whoever has valid evidence may open thousands of streams, and ask on each for many certificates.
That costs the authority far more than it costs them. Owns the order in which requests are decided.
Invariants: at most ``slots`` turns are held at once; machines that wait take turns, one request or
part of a request each, however many streams each has; so do the addresses of callers that have
proven nothing; as long as both wait, machines and such callers have every second turn, because
after an outage every agent begins as such a caller; who has a turn keeps the order of its own
requests; memory is for those that wait. Nothing here reads a clock or touches a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_Waiting: TypeAlias = "dict[asyncio.Future[None], None]"
_Row: TypeAlias = "OrderedDict[str, _Waiting]"


class IssuingTurns:
    """The turns of one authority.

    Args:
        slots: how many turns are held at once.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._machines: _Row = OrderedDict()
        """Those that wait, by machine; the first ones have the next turn."""
        self._strangers: _Row = OrderedDict()
        """Those that have proven nothing, by address."""
        self._last = self._strangers
        """The row that had the last turn."""

    @contextlib.asynccontextmanager
    async def turn(self, machine: str, address: str) -> AsyncIterator[None]:
        """Wait for a turn and keep it while the block runs.

        Args:
            machine: the machine whose evidence was accepted on this stream; empty before that.
            address: where the stream comes from.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait(machine, address)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, machine: str, address: str) -> None:
        row, name = (self._machines, machine) if machine else (self._strangers, address)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        row.setdefault(name, {})[future] = None
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it already had its turn
                self._pass_on()
            else:
                _take(row, name, future)
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next that waits; its machine or address is the last one then."""
        other = self._machines if self._last is self._strangers else self._strangers
        row = other or self._last
        if not row:
            self._free += 1
            return
        self._last = row
        name, waiting = next(iter(row.items()))
        future = next(iter(waiting))
        row.move_to_end(name)
        _take(row, name, future)
        future.set_result(None)


def _take(row: _Row, name: str, future: asyncio.Future[None]) -> None:
    del row[name][future]
    if not row[name]:
        del row[name]
