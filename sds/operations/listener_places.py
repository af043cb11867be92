"""Decides which connections of a small listener are served, and which wait.

Owns the places. Invariants: at most :data:`MAX_CONNECTIONS` are served, and at most
:data:`MAX_WAITING` wait unread. Those that wait have turns by owner (an IP address or network), and
if no more may wait, the owner with the most gives way: no address keeps probes from another one
out. A further connection takes the place of the one that was silent for longest, so that probes are
answered even if a client opens connections without end. A connection that waits for our answer is
not silent: a crowd that asks at once is answered, one after the other, and later connections do not
end it. A connection that had its answers (:class:`Patience`) makes room for a waiting one, so that
no client keeps a place by asking without end. Time in which the event loop stood still is not
silence: on a busy machine a client may have had no chance to send.
"""

from __future__ import annotations

import resource
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sds.faults import guarded

if TYPE_CHECKING:
    import asyncio

MAX_CONNECTIONS: Final = 100
"""The most connections that are served."""
MAX_WAITING: Final = 1024
"""The most connections that wait for a place."""
_PART_OF_DESCRIPTORS: Final = 32
"""A listener uses at most one in this many of the process's descriptors."""
_TICKS: Final = 10
"""Ticks in a grace. Each is at least one turn of the event loop, however late it comes."""


def most_connections(descriptors: int) -> int:
    """Return how many connections one listener has open at most, served or waiting.

    Args:
        descriptors: how many descriptors this process may have.
    """
    return MAX_CONNECTIONS + min(MAX_WAITING, descriptors // _PART_OF_DESCRIPTORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a connection may keep its place while others wait.

    Attributes:
        answers: how many answers it gets.
        grace: for how many seconds a connection that is new, or began a request, does not count as
            silent.
    """

    answers: int = 1
    grace: float = 0.05


SHORT: Final = Patience()
"""For clients that ask for one page, as probes do."""


class Placed(Protocol):
    """A connection that can have a place."""

    @property
    def owner(self) -> str:
        """Return whose it is: an IP address or network."""
        ...

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
        """End the connection after it has received what was written."""
        ...

    def abort(self) -> None:
        """End the connection now."""
        ...


@dataclass(slots=True, kw_only=True)
class _Standing:
    """How long a connection is silent, and how many answers it had."""

    since: int
    answers: int = 0


class ConnectionPlaces:
    """Gives places to connections, and takes them back.

    Args:
        loop: the event loop, whose time counts.
        patience: how long a served connection keeps its place while others wait.
        descriptors: how many descriptors this process may have; None for its present limit.
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
        """The served connections; the one that was silent for longest is first."""
        self._waiting: OrderedDict[str, dict[Placed, None]] = OrderedDict()
        """Those that wait, by owner: the owner whose turn it is, and its oldest, are first."""
        self._waiting_count = 0
        self._ticks = 0
        """The ticks that were counted while every place was taken."""
        self._ticking: asyncio.TimerHandle | None = None

    @property
    def crowded(self) -> bool:
        """Say whether connections wait for a place."""
        return bool(self._waiting)

    def opened(self, connection: Placed) -> None:
        """Serve a connection that was accepted, let it wait, or end it."""
        if not self._waiting and (len(self._served) < MAX_CONNECTIONS or self._end_silent()):
            self._admit(connection)
        elif self._waiting_count < self._most_waiting or self._gives_way_to(connection):
            connection.wait()
            self._waiting.setdefault(connection.owner, {})[connection] = None
            self._waiting_count += 1
        else:
            connection.abort()

    def active(self, connection: Placed) -> None:
        """Note that a connection began to send a request."""
        self._heard(connection)

    def answered(self, connection: Placed) -> None:
        """Note that a connection had an answer; after the last one it makes room for another."""
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
        """Note that a connection has ended."""
        self._served.pop(connection, None)
        self._wait_no_more(connection)
        self._admit_some()

    def close(self) -> None:
        """End every connection."""
        if self._ticking is not None:
            self._ticking.cancel()
        waiting = [each for theirs in self._waiting.values() for each in theirs]
        for connection in [*waiting, *self._served]:
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
            owner, theirs = next(iter(self._waiting.items()))
            self._waiting.move_to_end(owner)
            connection = next(iter(theirs))
            self._wait_no_more(connection)
            self._admit(connection)

    def _gives_way_to(self, connection: Placed) -> bool:
        """End the newest of the owner that has most waiting; return whether it has more."""
        most = max(self._waiting.values(), key=len, default={})
        if len(most) <= len(self._waiting.get(connection.owner, ())) + 1:
            return False
        newest = next(reversed(most))
        self._wait_no_more(newest)
        newest.abort()
        return True

    def _wait_no_more(self, connection: Placed) -> None:
        theirs = self._waiting.get(connection.owner, {})
        if connection in theirs:
            del theirs[connection]
            self._waiting_count -= 1
            if not theirs:
                del self._waiting[connection.owner]

    def _end_silent(self) -> bool:
        """End the connection that was silent for longest; return whether there was one."""
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
        """Make room by ending connections that have become silent."""
        self._ticking = None
        self._ticks += 1
        while self._waiting and self._end_silent():
            self._admit_some()
        if len(self._served) >= MAX_CONNECTIONS:
            self._tick_soon()
