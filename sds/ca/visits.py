"""Calls of strangers to other methods than the exchange: how many there may be.

All strangers share one budget of streams, and a call without its message, or whose answer is not
read, takes a stream for as long as its caller likes. Owns how many such calls there are. (Those of
the exchange are in :mod:`sds.ca.server`.) Invariants: of connections on which nothing was proven,
at most ``limit`` calls are open; if there is one more, the oldest one of the address (or network)
with the most ends; a call of a connection that has proven itself ends for nobody.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sds.ca.unproven import Crowd
from sds.exchange.wire import EXCHANGE
from sds.faults import guarded
from sds.transport.call import AbortedError

if TYPE_CHECKING:
    from sds.transport.call import Call


class Visitor(Protocol):
    """The connection of a call."""

    @property
    def owner(self) -> str:
        """Return who opened it: its address or network."""
        ...

    @property
    def proven(self) -> bool:
        """Say whether evidence was accepted on it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Visit:
    """One call."""

    call: Call
    owner: str

    def end(self) -> None:
        """End the call at once: an answer that its caller does not read would keep the stream."""
        with contextlib.suppress(AbortedError):
            self.call.cut()
        if self.call.task is not None:
            self.call.task.cancel()


class Visits:
    """The calls; as :class:`sds.transport.handling.Admission`, it is asked before each call.

    Args:
        limit: the most calls at once.
    """

    def __init__(self, limit: int) -> None:
        self._crowd: Crowd[_Visit] = Crowd(limit)
        self._of: dict[Visitor, set[_Visit]] = {}

    def __len__(self) -> int:
        """Return how many calls there are."""
        return len(self._crowd)

    async def __call__(self, call: Call, /) -> None:
        """Count a call, and end another one if there are too many."""
        visitor: Visitor = call.caller()
        if call.path == EXCHANGE or visitor.proven or call.task is None:
            return
        visit = _Visit(call, visitor.owner)
        self._crowd.join(visit)
        self._of.setdefault(visitor, set()).add(visit)
        call.task.add_done_callback(guarded("call", lambda _: self._over(visitor, visit)))

    def spare(self, visitor: Visitor) -> None:
        """Let the calls of a connection stay, because evidence was accepted on it."""
        for visit in self._of.pop(visitor, ()):
            self._crowd.leave(visit)

    def _over(self, visitor: Visitor, visit: _Visit) -> None:
        self._crowd.leave(visit)
        visits = self._of.get(visitor)
        if visits is not None:
            visits.discard(visit)
            if not visits:
                del self._of[visitor]
