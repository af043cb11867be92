"""Decides how many connections strangers may have, and which of them give way.

A stranger is a connection on which no evidence was accepted. Owns their number and their order.
Invariants: the connection that gives way is the one that has been in the largest group for longest;
a group is the connections of one address (or network) at one stage, so connections that wait do not
displace those that make progress, nor the reverse; each change costs the same, however many there
are. Nothing here reads a clock or touches a socket.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import Final, Generic, TypeAlias, TypeVar

YOUNG_SECONDS: Final = 3.0
"""The seconds in which an agent should prove itself."""


class Stage(enum.IntEnum):
    """How far a stranger has come."""

    SILENT = 0
    """Its TLS handshake is not over."""
    ANSWERED = 1
    """Its TLS handshake is over."""
    HEARD = 2
    """It said Hello (``docs/exchange.md``)."""
    LATE = 3
    """It had :data:`YOUNG_SECONDS` and proved nothing."""


Group: TypeAlias = "tuple[str, Stage]"
"""The address or network, and the stage."""
_MemberT = TypeVar("_MemberT")


def strangers_room(*, most: int, proven: int) -> int:
    """Return how many connections of strangers may be open.

    Args:
        most: the most connections at once.
        proven: on how many of them evidence was accepted.
    """
    return max(0, min(max(1, most // 2), most - proven))


class Strangers(Generic[_MemberT]):
    """The connections on which nothing was proven."""

    def __init__(self) -> None:
        self._group_of: dict[_MemberT, Group] = {}
        self._members: dict[Group, OrderedDict[_MemberT, None]] = {}
        self._by_size: dict[int, OrderedDict[Group, None]] = {}
        """The groups of each size."""
        self._largest = 0
        self._young: OrderedDict[_MemberT, float] = OrderedDict()
        """Those that are not late, the oldest first, each with the time when it came."""

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._group_of)

    def join(self, member: _MemberT, owner: str, *, now: float) -> None:
        """Add a connection that was just accepted; ``owner`` is its address or network."""
        self._young[member] = now
        self._put(member, (owner, Stage.SILENT))

    def advance(self, member: _MemberT, stage: Stage) -> None:
        """Note that a connection has come that far; never back, and not if it is late."""
        group = self._group_of.get(member)
        if group is not None and group[1] < stage:
            self._take(member, group)
            self._put(member, (group[0], stage))

    def leave(self, member: _MemberT) -> bool:
        """Remove a connection, and say whether it was among them."""
        group = self._group_of.get(member)
        if group is None:
            return False
        self._young.pop(member, None)
        self._take(member, group)
        return True

    def surplus(self, room: int, *, now: float) -> list[_MemberT]:
        """Remove and return those that are too many if ``room`` may stay."""
        while self._young:
            member, since = next(iter(self._young.items()))
            if now - since < YOUNG_SECONDS:
                break
            del self._young[member]
            self.advance(member, Stage.LATE)
        ends = []
        while len(self) > max(0, room):
            group = next(iter(self._by_size[self._largest]))
            longest = next(iter(self._members[group]))
            self.leave(longest)
            ends.append(longest)
        return ends

    def _put(self, member: _MemberT, group: Group) -> None:
        members = self._members.setdefault(group, OrderedDict())
        members[member] = None
        self._group_of[member] = group
        self._resized(group, len(members) - 1, len(members))

    def _take(self, member: _MemberT, group: Group) -> None:
        members = self._members[group]
        del members[member]
        del self._group_of[member]
        if not members:
            del self._members[group]
        self._resized(group, len(members) + 1, len(members))

    def _resized(self, group: Group, before: int, after: int) -> None:
        if before:
            del self._by_size[before][group]
            if not self._by_size[before]:
                del self._by_size[before]
        if after:
            self._by_size.setdefault(after, OrderedDict())[group] = None
            self._largest = max(self._largest, after)
        while self._largest and self._largest not in self._by_size:
            self._largest -= 1
