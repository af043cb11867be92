"""Ends surplus connections of strangers, so that agents always find room.

gRPC accepts connections up to a number and closes every further one, and it has no hook at accept.
So gRPC may accept some more than there should be; this module looks at the process's own
descriptors and ends the surplus (docs/adr/0306). Owns the knowledge of which TCP connections of the
authority's port belong to agents that proved something. Invariants: a connection on which evidence
was accepted is never ended here; of the others, at most ``room`` are left after a look, and fewer
if agents need the room; a connection competes only with those at the same stage; a descriptor is
only read, and a connection is ended by shutdown(2) on a duplicate that was checked to be that
connection, so gRPC's own use of the descriptor is never disturbed.

Sources: proc(5) for ``/proc/self/fd`` (its size is the number of descriptors since Linux 6.2);
tcp(7) and ``linux/tcp.h`` for TCP_INFO; shutdown(2), which acts on the connection.
"""

from __future__ import annotations

import contextlib
import enum
import heapq
import ipaddress
import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from sds import threads
from sds.ca.unproven import address_and_port, owner_of_address, plain_address

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sds.clock import Clock

_DESCRIPTORS: Final = "/proc/self/fd"
_QUIET_SECONDS: Final = 0.2
"""The seconds between two looks at the number of open descriptors."""
_CROWDED_SECONDS: Final = 0.05
"""The seconds between two looks at connections while strangers use more than half their room."""
_REST: Final = 50
"""Once in this many looks, connections are checked although few descriptors are open."""
YOUNG_SECONDS: Final = 3.0
"""The seconds in which an agent should prove itself."""
_BYTES_ACKED: Final = 120
"""The offset of ``tcpi_bytes_acked`` in ``struct tcp_info``."""
_U64: Final = struct.Struct("=Q")

Name: TypeAlias = "tuple[str, int]"
"""The caller's address and port."""


class Stage(enum.IntEnum):
    """How far a stranger has come."""

    SILENT = 0
    """It has not sent a complete TLS hello."""
    ANSWERED = 1
    """It has taken an answer."""
    HEARD = 2
    """It said Hello (``docs/exchange.md``)."""
    LATE = 3
    """It had :data:`YOUNG_SECONDS` and proved nothing."""


@dataclass(slots=True, kw_only=True, eq=False)
class AcceptedConnection:
    """One accepted connection.

    Attributes:
        descriptor: gRPC's descriptor of it.
        inode: the socket's inode; another one means another connection under that descriptor.
        name: the caller's address and port.
        owner: the caller's address, or its network.
        since: when it was first seen, in monotonic seconds.
        stage: how far the caller has come.
    """

    descriptor: int
    inode: int
    name: Name
    owner: str
    since: float
    stage: Stage = Stage.SILENT

    def end(self) -> None:
        """Shut the connection down, if the descriptor still belongs to it."""
        with contextlib.suppress(OSError), _duplicate(self.descriptor) as found:
            if _name(found) == self.name:
                found.shutdown(socket.SHUT_RDWR)

    def look(self, *, heard: bool, now: float) -> None:
        """Update the stage of the connection.

        Raises:
            OSError: it was closed.
        """
        if now - self.since >= YOUNG_SECONDS:
            self.stage = Stage.LATE
        elif heard:
            self.stage = Stage.HEARD
        elif self.stage is Stage.SILENT:
            with _duplicate(self.descriptor) as one:
                size = _BYTES_ACKED + _U64.size
                said = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
            # The first byte is our side of TCP's own handshake.
            if len(said) == size and _U64.unpack_from(said, _BYTES_ACKED)[0] > 1:
                self.stage = Stage.ANSWERED


def surplus(strangers: Sequence[AcceptedConnection], *, room: int) -> list[AcceptedConnection]:
    """Return which of these connections are too many.

    These are, one after the other, the oldest of the largest group; a group is the connections of
    one address at one stage. So waiting connections do not displace progressing ones, nor the
    reverse.

    Args:
        strangers: the connections on which nothing was proven.
        room: how many may stay.
    """
    groups: dict[tuple[str, Stage], list[AcceptedConnection]] = {}
    for one in strangers:
        groups.setdefault((one.owner, one.stage), []).append(one)
    for members in groups.values():
        members.sort(key=lambda one: -one.since)
    largest = [(-len(members), group) for group, members in groups.items()]
    heapq.heapify(largest)
    ends: list[AcceptedConnection] = []
    for _ in range(max(0, len(strangers) - room)):
        _, group = heapq.heappop(largest)
        members = groups[group]
        ends.append(members.pop())
        if members:
            heapq.heappush(largest, (-len(members), group))
    return ends


class Connections:
    """The connections of the authority's port.

    Args:
        most: the most connections at once; half of them may be strangers'.
        clock: gives the time, and waits between looks.
    """

    def __init__(self, *, most: int, clock: Clock) -> None:
        """Look at nothing before :meth:`run`."""
        self._most = most
        self._clock = clock
        self._open: dict[int, AcceptedConnection] = {}
        self._proven: set[Name] = set()
        self._newly: set[Name] = set()
        """The connections that were proven since the last look began."""
        self._heard: set[Name] = set()
        self.strangers = 0
        """How many connections had proven nothing at the last look."""

    def hear(self, peer: str) -> None:
        """Note a Hello on the connection of this peer, as gRPC names it."""
        name = address_and_port(peer)
        if name is not None:
            self._heard.add(name)

    def prove(self, peer: str) -> None:
        """Note that evidence was accepted on the connection of this peer, as gRPC names it."""
        name = address_and_port(peer)
        if name is not None:
            self._newly.add(name)

    async def run(self, port: int) -> None:
        """Look at the connections of our port at intervals, until cancelled."""
        crowded, rest = False, 0
        while True:
            rest -= 1
            if crowded or rest < 0 or _descriptors() > self._most // 2:
                # A caller that proves itself while we look may have come too late to be seen.
                before, self._newly = self._newly, set()
                try:
                    crowded = await threads.CONNECTIONS.run(self.look, port, before)
                except BaseException:
                    self._newly |= before  # no descriptor is free for a look, say; for the next one
                    raise
                rest = _REST
            await self._clock.sleep(_CROWDED_SECONDS if crowded else _QUIET_SECONDS)

    def look(self, port: int, proven: set[Name]) -> bool:
        """Look at all connections of this port, and end the surplus.

        Args:
            port: our port.
            proven: the connections on which evidence was accepted since the last
                look.

        Returns:
            Whether strangers have more than half of their room.
        """
        now = self._clock.now().monotonic
        heard, self._heard = self._heard, set()
        before, self._open = self._open, self._found(port, now, heard)
        known = {one.name for one in self._open.values()}
        gone = {one.name for at, one in before.items() if self._open.get(at) is not one}
        self._proven = ((self._proven - gone) | proven) & known
        strangers = [one for one in self._open.values() if one.name not in self._proven]
        room = min(self._most // 2, max(1, self._most - len(self._proven)))
        ends = surplus(strangers, room=room)
        for one in ends:
            if one.name not in self._newly:
                one.end()
        self.strangers = len(strangers) - len(ends)
        return 2 * self.strangers > room

    def _found(self, port: int, now: float, heard: set[Name]) -> dict[int, AcceptedConnection]:
        """Return the open accepted connections by descriptor; known ones are the same object."""
        found: dict[int, AcceptedConnection] = {}
        for text in os.listdir(_DESCRIPTORS):  # noqa: PTH208  thousands, many times a second
            descriptor = int(text)
            with contextlib.suppress(OSError):  # it was closed meanwhile, or is a listener
                status = os.fstat(descriptor)
                if not stat.S_ISSOCK(status.st_mode):
                    continue
                one = self._open.get(descriptor)
                if one is None or one.inode != status.st_ino:
                    one = _accepted(descriptor, status.st_ino, port, now)
                if one is not None:
                    if one.name not in self._proven:
                        one.look(heard=one.name in heard, now=now)
                    found[descriptor] = one
        return found


def _accepted(descriptor: int, inode: int, ours: int, now: float) -> AcceptedConnection | None:
    """Return what this socket is, if it was accepted on our port.

    Raises:
        OSError: it was closed meanwhile, or is a listener.
    """
    with _duplicate(descriptor) as one:
        name = _name(one)
        if name is None or one.getsockname()[1] != ours:
            return None
    owner = owner_of_address(ipaddress.ip_address(name[0]))
    return AcceptedConnection(descriptor=descriptor, inode=inode, name=name, owner=owner, since=now)


def _name(one: socket.socket) -> Name | None:
    """Return the caller's address and port; None for a socket of another family.

    Raises:
        OSError: it is not connected.
    """
    if one.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    address, port = one.getpeername()[:2]
    ip = plain_address(address)
    return None if ip is None else (str(ip), port)


@contextlib.contextmanager
def _duplicate(descriptor: int) -> Iterator[socket.socket]:
    """Make a descriptor of our own for the same connection."""
    number = os.dup(descriptor)
    try:
        one = socket.socket(fileno=number)
    except OSError:  # it is no longer a socket
        os.close(number)
        raise
    with one:
        yield one


def _descriptors() -> int:
    """Return how many descriptors are open; more than any bound if the kernel does not say."""
    return os.stat(_DESCRIPTORS).st_size or 1 << 30  # noqa: PTH116  as above
