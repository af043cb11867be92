"""Gives turns at deciding and signing to machines, one after the other.

Whoever has valid evidence may open thousands of streams, and ask on each for many certificates.
That costs the authority far more than it costs them. Owns the order in which requests are decided.
Invariants: at most ``slots`` turns are held at once; machines that wait take turns, one request or
part of a request each, however many streams each has; all callers that have proven nothing count as
one machine together, and the addresses among them take turns; a machine's own requests keep their
order; memory is for those that wait. Nothing here reads a clock or touches a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_STRANGERS: Final = ""
_Waiting: TypeAlias = "dict[asyncio.Future[None], None]"


class IssuingTurns:
    """The turns of one authority.

    Args:
        slots: how many turns are held at once.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._rows: OrderedDict[str, OrderedDict[str, _Waiting]] = OrderedDict()
        """Those that wait, by machine and by address; the first ones have the next turn."""

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
        # A machine's requests keep their order, whichever addresses it has.
        address = address if machine == _STRANGERS else ""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        row = self._rows.setdefault(machine, OrderedDict())
        row.setdefault(address, {})[future] = None
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it already had its turn
                self._pass_on()
            else:
                self._take(machine, address, future)
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next that waits, and put its row behind all others."""
        if not self._rows:
            self._free += 1
            return
        machine, row = next(iter(self._rows.items()))
        address, waiting = next(iter(row.items()))
        future = next(iter(waiting))
        self._rows.move_to_end(machine)
        row.move_to_end(address)
        self._take(machine, address, future)
        future.set_result(None)

    def _take(self, machine: str, address: str, future: asyncio.Future[None]) -> None:
        row = self._rows[machine]
        del row[address][future]
        if not row[address]:
            del row[address]
        if not row:
            del self._rows[machine]
