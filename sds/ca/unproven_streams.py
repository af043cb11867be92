"""Streams of callers that have proven nothing: how many there may be, and which is read next.

Owns how much of the authority such callers may use. The memory of half-received messages is
bounded across streams: the transport keeps only the small window of a stream that nobody reads, and
:class:`ReadingTurns` reads few streams at a time. Invariants: at most
``limit`` members are in a :class:`Crowd` and at most ``slots`` of them are read; if there is no
room, the owner (an IP address) that has the most gives way first; no member keeps a turn for longer
than its lease while another one waits; of one owner's connections, those that read less come first.

The newest stream of a connection is read first, and the newest connection every second time: under
a flood, callers that waited long have given up, and an honest caller has its message ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Iterable

_LOOK_SECONDS: Final = 0.01
_COMPARED_CONNECTIONS: Final = 64
"""How many connections are compared to make room for one stream, however many there are."""


class Member(Protocol):
    """One caller's stream."""

    @property
    def owner(self) -> str:
        """Return who opened the stream (:func:`~sds.transport.addresses.owner_of`)."""
        ...

    @property
    def connection(self) -> Hashable:
        """Return the connection of the stream."""
        ...

    def end(self) -> None:
        """Let the stream end as soon as it can."""
        ...


class Reader(Member, Protocol):
    """A stream whose next message is to be read."""

    @property
    def lease(self) -> float:
        """Return the seconds that the stream may take for that message while others wait."""
        ...


_MemberT = TypeVar("_MemberT", bound=Member)


class Crowd(Generic[_MemberT]):
    """A bounded set of members, the oldest first for each connection of each owner.

    Args:
        limit: the most members at once.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_owner: dict[str, dict[Hashable, dict[_MemberT, None]]] = {}
        self._sizes: Counter[str] = Counter()
        """How many members each owner has."""
        self._size = 0

    def __len__(self) -> int:
        """Return how many members there are."""
        return self._size

    def __contains__(self, member: _MemberT) -> bool:
        """Say whether this stream is among them."""
        return member in self._by_owner.get(member.owner, {}).get(member.connection, ())

    def join(self, member: _MemberT) -> None:
        """Add a member; if there is no room, another one ends (:meth:`make_room`)."""
        if self._size >= self._limit:
            self.make_room()
        of_owner = self._by_owner.setdefault(member.owner, {})
        of_owner.setdefault(member.connection, {})[member] = None
        self._sizes[member.owner] += 1
        self._size += 1

    def leave(self, member: _MemberT) -> bool:
        """Remove a member, and say whether it was there."""
        if member not in self:
            return False
        owner, connection = member.owner, member.connection
        del self._by_owner[owner][connection][member]
        if not self._by_owner[owner][connection]:
            del self._by_owner[owner][connection]
        self._sizes[owner] -= 1
        if not self._sizes[owner]:
            del self._by_owner[owner], self._sizes[owner]
        self._size -= 1
        return True

    def make_room(self) -> bool:
        """End the oldest member of the owner that has the most, and say whether there was one.

        Of the owner's connections that have been here for longest, the one with the most members
        gives way, so that a caller with many streams ends no other one behind its address.
        """
        if not self._by_owner:
            return False
        heaviest = self._by_owner[max(self._sizes, key=self._sizes.__getitem__)]
        longest = list(itertools.islice(heaviest.values(), _COMPARED_CONNECTIONS))
        greedy = max(longest, key=len)
        oldest = next(iter(greedy))
        self.leave(oldest)
        oldest.end()
        return True


class ReadingTurns:
    """Lets few streams be read at a time.

    Args:
        slots: the most streams that are read at once.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._reading: dict[Reader, float] = {}  # since when, oldest first
        self._told: set[Reader] = set()
        self._waiting: dict[str, dict[Hashable, dict[asyncio.Future[None], Reader]]] = {}
        """By owner and connection, the newest last."""
        self._newest_next = False
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def turn(self, reader: Reader) -> AsyncIterator[None]:
        """Wait for a turn and keep it while the block runs."""
        loop = asyncio.get_running_loop()
        if len(self._reading) < self._slots:
            self._reading[reader] = loop.time()
        else:
            await self._wait(reader, loop)
        try:
            yield
        finally:
            del self._reading[reader]
            self._told.discard(reader)
            self._pass_on(loop)

    async def _wait(self, reader: Reader, loop: asyncio.AbstractEventLoop) -> None:
        future: asyncio.Future[None] = loop.create_future()
        of_owner = self._waiting.setdefault(reader.owner, {})
        of_owner.setdefault(reader.connection, {})[future] = reader
        self._review()
        try:
            await future
        except asyncio.CancelledError:
            waiting = self._waiting.get(reader.owner, {}).get(reader.connection, {})
            if waiting.pop(future, None) is not None:
                self._tidy(reader.owner, reader.connection)
            if self._reading.pop(reader, None) is not None:  # the turn came at the same moment
                self._told.discard(reader)
                self._pass_on(loop)
            raise

    def _pass_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give free turns to the newest streams of connections of the owner that reads the least.

        Of its connections that read the least, the newest and the one that waits longest are next
        alternately: a caller that opens streams, or connections, faster than turns come keeps no
        other one behind its address waiting for long.
        """
        while self._waiting and len(self._reading) < self._slots:
            held = self._held()
            owner = min(self._waiting, key=lambda name: held.get(name, 0))
            of_owner = self._waiting[owner]
            connection = self._next_connection(of_owner)
            of_owner[connection] = of_owner.pop(connection)  # it has waited for the shortest time
            future, reader = of_owner[connection].popitem()
            self._tidy(owner, connection)
            if not future.done():
                self._reading[reader] = loop.time()
                future.set_result(None)
        if self._waiting:
            self._review()

    def _next_connection(self, waiting: dict[Hashable, Any]) -> Hashable:
        """Return a connection that reads the least: few read, so few are looked at."""
        held = Counter(reader.connection for reader in self._reading)
        self._newest_next = not self._newest_next
        row: Iterable[Hashable] = reversed(waiting) if self._newest_next else waiting
        first = list(itertools.islice(row, len(held) + 1))
        return min(first, key=held.__getitem__)

    def _tidy(self, owner: str, connection: Hashable) -> None:
        """Remove what is empty."""
        if not self._waiting[owner][connection]:
            del self._waiting[owner][connection]
        if not self._waiting[owner]:
            del self._waiting[owner]

    def _held(self) -> dict[str, int]:
        held: dict[str, int] = {}
        for reader in self._reading:
            held[reader.owner] = held.get(reader.owner, 0) + 1
        return held

    def _review(self) -> None:
        """End as many readers with an expired lease as others wait, and set the next look."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        held = self._held()
        least = min((held.get(owner, 0) for owner in self._waiting), default=0)
        # A turn goes to a stream of the same owner, or of an owner that reads less. The readers
        # with the shortest lease, which are the furthest from proving anything, give way first.
        gives = {
            reader: since
            for reader, since in self._reading.items()
            if reader not in self._told
            and (reader.owner in self._waiting or held[reader.owner] > least)
        }
        shortest = min((reader.lease for reader in gives), default=0.0)
        ends = {reader: since + shortest for reader, since in gives.items()}
        over = [reader for reader, end in ends.items() if end <= now and reader.lease == shortest]
        over.sort(key=lambda reader: -held[reader.owner])  # stable: the oldest stay first
        waiting = itertools.chain.from_iterable(one.values() for one in self._waiting.values())
        wanted = sum(map(len, waiting)) - len(self._told)
        for reader in over[: max(0, wanted)]:
            self._told.add(reader)
            reader.end()
        pending = [end for reader, end in ends.items() if reader not in self._told]
        if self._waiting and (pending or self._told):
            self._timer = loop.call_at(
                max(now + _LOOK_SECONDS, min(pending, default=now)), self._again
            )

    def _again(self) -> None:
        self._timer = None
        if self._waiting:
            self._review()
