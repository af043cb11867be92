"""Which connections of a small listener are served, and which wait.

Owns the places. Invariants: at most :data:`MAX_CONNECTIONS` are served, and at most
:data:`MAX_WAITING` wait, of which nothing is read. One more takes the place of the one that was
silent for longest, so that probes are answered though somebody opens connections without end. A
connection that waits for an answer of ours is not silent: a crowd that asks at once is answered,
one after the other, and is not ended by those who come after. A connection that had its answers
(:class:`Patience`) makes room for one that waits, so that nobody keeps a place by asking without
end. Time in which the event loop stood still is not silence: on a busy machine a client may have
had no turn to speak in.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sds.faults import guarded

if TYPE_CHECKING:
    import asyncio

MAX_CONNECTIONS: Final = 100
"""Connections that are served."""
MAX_WAITING: Final = 1024
"""Connections that wait for a place."""
_PART_OF_DESCRIPTORS: Final = 32
"""And at most one in so many descriptors that this process may have."""
_TICKS: Final = 10
"""In a grace. Each is at least one turn of the loop, however late it comes."""


def most_connections(descriptors: int) -> int:
    """Return how many connections one listener has open at most, served or waiting.

    Args:
        descriptors: that this process may have.
    """
    return MAX_CONNECTIONS + min(MAX_WAITING, descriptors // _PART_OF_DESCRIPTORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a connection may keep its place though others wait.

    Attributes:
        answers: how many answers it gets.
        grace: seconds for which a connection that is new, or said something, is not silent yet.
    """

    answers: int = 1
    grace: float = 0.05


SHORT: Final = Patience()
"""With who asks for one page, as probes do."""


class Placed(Protocol):
    """A connection, as its place sees it."""

    @property
    def working(self) -> bool:
        """Say whether it waits for us: it asked, or sent something that was not read yet."""
        ...

    def wait(self) -> None:
        """Read nothing until it is admitted."""
        ...

    def admitted(self) -> None:
        """Read from now on."""
        ...

    def close(self) -> None:
        """End it when it has what was written."""
        ...

    def abort(self) -> None:
        """End it now."""
        ...


@dataclass(slots=True, kw_only=True)
class _Standing:
    """Since which tick a connection is silent, and how many answers it had."""

    since: int
    answers: int = 0


class ConnectionPlaces:
    """See the module.

    Args:
        loop: its time counts.
        patience: with who is served while others wait.
        descriptors: that this process may have; what it is allowed now if None.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        patience: Patience,
        *,
        descriptors: int | None = None,
    ) -> None:
        if descriptors is None:
            descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most_waiting = most_connections(descriptors) - MAX_CONNECTIONS
        self._loop = loop
        self._patience = patience
        self._served: dict[Placed, _Standing] = {}
        """The longest silent first."""
        self._waiting: dict[Placed, None] = {}
        self._ticks = 0
        """Counted while every place is taken."""
        self._ticking: asyncio.TimerHandle | None = None

    def opened(self, connection: Placed) -> None:
        """Serve a connection that was accepted, let it wait, or end it."""
        if len(self._served) < MAX_CONNECTIONS or self._end_silent():
            self._admit(connection)
        elif len(self._waiting) < self._most_waiting:
            connection.wait()
            self._waiting[connection] = None
        else:
            connection.abort()

    def active(self, connection: Placed) -> None:
        """Note that a connection said something."""
        self._heard(connection)

    def answered(self, connection: Placed) -> None:
        """Note that a connection had an answer; with its last one it makes room for who waits."""
        standing = self._heard(connection)
        if standing is None:
            return
        standing.answers += 1
        if not self._waiting:
            return
        if self._end_silent():
            self._admit_some()
        elif standing.answers >= self._patience.answers:
            connection.close()

    def closed(self, connection: Placed) -> None:
        """Note that a connection is gone."""
        self._served.pop(connection, None)
        self._waiting.pop(connection, None)
        self._admit_some()

    def close(self) -> None:
        """End every connection."""
        if self._ticking is not None:
            self._ticking.cancel()
        for connection in [*self._waiting, *self._served]:
            connection.abort()

    def _heard(self, connection: Placed) -> _Standing | None:
        standing = self._served.pop(connection, None)
        if standing is not None:
            standing.since = self._ticks
            self._served[connection] = standing
        return standing

    def _admit(self, connection: Placed) -> None:
        self._served[connection] = _Standing(since=self._ticks)
        connection.admitted()
        if len(self._served) >= MAX_CONNECTIONS:
            self._tick_soon()

    def _admit_some(self) -> None:
        while self._waiting and len(self._served) < MAX_CONNECTIONS:
            connection = next(iter(self._waiting))
            del self._waiting[connection]
            self._admit(connection)

    def _end_silent(self) -> bool:
        """End the connection that was silent for longest; whether there was one."""
        latest = self._ticks - _TICKS
        for connection, standing in self._served.items():
            if standing.since > latest:
                return False
            if not connection.working:
                del self._served[connection]
                connection.abort()
                return True
        return False

    def _tick_soon(self) -> None:
        if self._ticking is None:
            self._ticking = self._loop.call_later(
                self._patience.grace / _TICKS, guarded("connection", self._tick)
            )

    def _tick(self) -> None:
        """Find room among those that have become silent."""
        self._ticking = None
        self._ticks += 1
        while self._waiting and self._end_silent():
            self._admit_some()
        if len(self._served) >= MAX_CONNECTIONS:
            self._tick_soon()
