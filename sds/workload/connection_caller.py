"""The object that a connection carries from accept to the handlers: its caller.

Owns the port :class:`Connected`, :func:`entitlement_of` that handlers use, and
:class:`OwnSocket`, the caller of a socket that belongs to one workload. Invariant: a handler finds
out about its caller through the object that the connection was given at accept, and in no other
way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sds.errors import WorkloadError
from sds.workload.mapping import MatchedRule

if TYPE_CHECKING:
    from sds.workload.entitlement import Entitlement, Selector


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerDescription:
    """What is known about a caller.

    Attributes:
        name: its name for people.
        pid: the process; 0 if the socket alone decides.
        selectors: the facts that were found.
        granted: the identities with the rules that gave them; the first is ``default``.
        state: ``recognised``, ``no_match`` or ``undetermined``.
        why: the reason for the state, in words.
        details: lines about the caller for people, such as its container in canonical form.
    """

    name: str
    pid: int
    selectors: frozenset[Selector]
    granted: tuple[MatchedRule, ...]
    state: str
    why: str
    details: tuple[str, ...] = ()


class Connected(Protocol):
    """The caller of a connection."""

    async def entitlement(self) -> Entitlement:
        """Return what it may have; wait a bounded time until that is known.

        Raises:
            WorkloadError: it is not recognised; the text says what was found about it.
        """
        ...

    async def describe(self) -> CallerDescription:
        """Return what to tell it about itself; wait a bounded time for the first look.

        Raises:
            WorkloadError: its process has ended.
        """
        ...


def connected(context: Any) -> Connected:
    """Return who is at the other end of a call's connection: ``context.caller()`` of our transport.

    Raises:
        WorkloadError: ``unknown_connection``: the connection carries no caller.
    """
    caller: Connected | None = context.caller()
    if caller is None:
        raise WorkloadError(
            "this connection did not come through the front door", reason="unknown_connection"
        )
    return caller


async def entitlement_of(context: Any) -> Entitlement:
    """Return the entitlement of the caller behind a call; wait for a match, bounded.

    Raises:
        WorkloadError: the caller is not recognised; the text says what was found about it.
    """
    return await connected(context).entitlement()


class OwnSocket:
    """The caller of one workload's socket: a process that can open it is that workload."""

    def __init__(self, entitlement: Entitlement) -> None:
        """Make the caller of a socket on which everybody has this entitlement."""
        self._entitlement = entitlement

    async def entitlement(self) -> Entitlement:
        return self._entitlement

    async def describe(self) -> CallerDescription:
        caller = self._entitlement.current
        return CallerDescription(
            name=caller.name,
            pid=caller.pid or 0,
            selectors=caller.selectors,
            granted=tuple(MatchedRule(rule="", identity=each) for each in caller.identities),
            state="recognised",
            why="this socket belongs to this workload: every process that can open it is that "
            "workload",
        )
