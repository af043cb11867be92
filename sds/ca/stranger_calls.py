"""Calls of strangers to other methods than the exchange: how many there may be.

All strangers share one budget of streams, and a call without its message, or whose answer is not
read, takes a stream for as long as its caller likes. Owns how many such calls there are. (Those of
the exchange are in :mod:`sds.ca.server`.) Invariants: of connections on which nothing was proven,
at most ``limit`` calls are open; if there is one more, one of the address (or network) with the
most ends (:class:`~sds.ca.unproven_streams.Crowd`); a call of a connection that has proven itself
ends for nobody.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sds.ca.unproven_streams import Crowd
from sds.exchange.wire import EXCHANGE
from sds.faults import guarded
from sds.transport.call import AbortedError

if TYPE_CHECKING:
    from sds.ca.connections import KnownConnection
    from sds.transport.call import Call


@dataclass(frozen=True, slots=True, eq=False)
class _StrangerCall:
    """One call."""

    call: Call
    connection: KnownConnection

    @property
    def owner(self) -> str:
        """Return who opened its connection: an address or network."""
        return self.connection.owner

    def end(self) -> None:
        """End the call at once: an answer that its caller does not read would keep the stream."""
        with contextlib.suppress(AbortedError):
            self.call.cut()
        if self.call.task is not None:
            self.call.task.cancel()


class StrangerCalls:
    """The calls; as :class:`sds.transport.handling.Admission`, it is asked before each call.

    Args:
        limit: the most calls at once.
    """

    def __init__(self, limit: int) -> None:
        self._crowd: Crowd[_StrangerCall] = Crowd(limit)
        self._of: dict[KnownConnection, set[_StrangerCall]] = {}

    def __len__(self) -> int:
        """Return how many calls there are."""
        return len(self._crowd)

    async def __call__(self, call: Call, /) -> None:
        """Count a call, and end another one if there are too many."""
        connection: KnownConnection = call.caller()
        if call.path == EXCHANGE or connection.proven or call.task is None:
            return
        counted = _StrangerCall(call, connection)
        self._crowd.join(counted)
        self._of.setdefault(connection, set()).add(counted)
        call.task.add_done_callback(guarded("call", lambda _: self._over(connection, counted)))

    def spare(self, connection: KnownConnection) -> None:
        """Let the calls of a connection stay, because evidence was accepted on it."""
        for counted in self._of.pop(connection, ()):
            self._crowd.leave(counted)

    def _over(self, connection: KnownConnection, counted: _StrangerCall) -> None:
        self._crowd.leave(counted)
        calls = self._of.get(connection)
        if calls is not None:
            calls.discard(counted)
            if not calls:
                del self._of[connection]
