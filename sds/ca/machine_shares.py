"""Decides what one machine may have of the authority's streams and connections, when few are left.

Owns the members (streams or connections on which evidence was accepted) of each machine.
Invariants: as long as one machine has more than an eighth of all that there may be, an eighth stays
free for others; as long as one has more than :data:`_LEAST_SHARE`, a 32nd stays free, so that eight
machines do not keep all others out; each change costs the same, however many machines there are;
once in ten seconds, the log names a machine that loses some. Nothing here reads a clock or touches
a socket.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sds.attestation.registry import KINDS
from sds.repeats import Repeats

if TYPE_CHECKING:
    from sds.attestation.evidence import Claims

_LOG: Final = logging.getLogger("sds.ca")
_LEAST_SHARE: Final = 8
"""An agent opens two streams, and each on a connection of its own while it replaces one."""
_MemberT = TypeVar("_MemberT")


def machine_of(claims: Claims, *, address: str) -> str:
    """Return a text that names the machine of accepted evidence.

    Args:
        claims: what the evidence proved.
        address: the address or network that it came from, for evidence that names no machine: a
            report with a masked CHIP_ID, for example.
    """
    kind = KINDS[claims.kind]
    if kind.names_node:
        return f"node {claims.measurement}"
    for name in kind.machine:
        value = claims.attributes.get(name, "")
        if value.strip("0"):
            return f"{name} {value}"
    return f"address {address}"


class MachineShares(Generic[_MemberT]):
    """The members of each machine.

    Args:
        most: how many members of all machines there may be.
        what: what the members are, for the log.
    """

    def __init__(self, most: int, what: str) -> None:
        self._what = what
        self._said = Repeats(keys=1)
        self._share = max(_LEAST_SHARE, most // 8)
        self._room = most - self._share
        self._last_room = most - max(1, most // 32)
        self._machine_of: dict[_MemberT, str] = {}
        self._members: dict[str, dict[_MemberT, None]] = {}
        """The members of each machine, the oldest first."""
        self._by_size: dict[int, dict[str, None]] = {}
        """The machines with so many members."""
        self._largest = 0

    def __len__(self) -> int:
        """Return how many members there are."""
        return len(self._machine_of)

    def __contains__(self, member: _MemberT) -> bool:
        """Say whether it is among them."""
        return member in self._machine_of

    def join(self, member: _MemberT, machine: str, *, now: float) -> list[_MemberT]:
        """Add a member, unless it is there.

        Args:
            member: a stream or connection.
            machine: whose it is (:func:`machine_of`).
            now: seconds of a monotonic clock.

        Returns:
            The members that have to end, of the machines with the most; they are removed.
        """
        if member not in self:
            self._machine_of[member] = machine
            members = self._members.setdefault(machine, {})
            members[member] = None
            self._resized(machine, len(members) - 1, len(members))
        ends = []
        while self._is_too_many():
            largest = next(iter(self._by_size[self._largest]))
            self._say(largest, now)
            oldest = next(iter(self._members[largest]))
            self.leave(oldest)
            ends.append(oldest)
        return ends

    def _is_too_many(self) -> bool:
        """Say whether the machine with the most has to lose one."""
        count = len(self)
        return (count > self._room and self._largest > self._share) or (
            count > self._last_room and self._largest > _LEAST_SHARE
        )

    def _resized(self, machine: str, before: int, after: int) -> None:
        """Note that a machine has one more or one less."""
        if before:
            del self._by_size[before][machine]
        if after:
            self._by_size.setdefault(after, {})[machine] = None
        if before and not self._by_size[before]:
            del self._by_size[before]
            if before == self._largest:
                self._largest = after
        self._largest = max(self._largest, after)

    def _say(self, machine: str, now: float) -> None:
        if self._said.due(self._what, now=now) is not None:
            _LOG.warning(
                "few are left, and one machine has more than others, so its oldest are ended",
                extra={
                    "limit": self._what,
                    "machine": machine,
                    "has": len(self._members[machine]),
                    "share": self._share,
                },
            )

    def leave(self, member: _MemberT) -> bool:
        """Remove a member, and say whether it was there."""
        machine = self._machine_of.pop(member, None)
        if machine is None:
            return False
        members = self._members[machine]
        del members[member]
        self._resized(machine, len(members) + 1, len(members))
        if not members:
            del self._members[machine]
        return True
