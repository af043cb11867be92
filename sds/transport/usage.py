"""The use of each owner of connections, in plain values for people and metrics."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sds.transport.budget import Account, Budgets, Owner

LIMITS: Final = ("connections", "memory", "refused calls", "streams")
"""The limits that an owner can exceed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one owner, or several together, use now.

    Attributes:
        name: ``pod 1234…`` or ``uid 1000``; empty for several owners together.
        recognised: whether a rule matched one of its callers, so that it has a budget of its own.
        connections: open connections.
        streams: open streams.
        held_bytes: bytes of memory that count against the budget.
        exceeded: how often each limit was exceeded, since the start.
    """

    name: str = ""
    recognised: bool = False
    connections: int = 0
    streams: int = 0
    held_bytes: int = 0
    exceeded: Mapping[str, int] = field(default_factory=dict)


def largest(budgets: Budgets, most: int) -> tuple[Usage, ...]:
    """Return the owners that exceeded a limit, then those that use the most memory."""
    found = heapq.nlargest(
        most,
        budgets.owners.values(),
        key=lambda owner: (bool(budgets.exceeded.get(owner.name)), owner.held),
    )
    return tuple(_of(budgets, owner) for owner in found)


def strangers(budgets: Budgets) -> Usage:
    """Return what all owners that nobody has recognised use together."""
    return _sum(budgets.strangers)


def recognised(budgets: Budgets) -> Usage:
    """Return what all recognised owners use together."""
    every, strange = budgets.all, budgets.strangers
    return Usage(
        connections=every.connections - strange.connections,
        streams=every.streams - strange.streams,
        held_bytes=every.held - strange.held,
    )


def times_exceeded(budgets: Budgets) -> Iterator[tuple[str, int]]:
    """Yield how often each limit was exceeded, by all owners together."""
    for limit in LIMITS:
        yield limit, sum(counted[limit] for counted in budgets.exceeded.values())


def _of(budgets: Budgets, owner: Owner) -> Usage:
    return Usage(
        name=owner.name,
        recognised=owner.recognised,
        connections=owner.connections,
        streams=owner.streams,
        held_bytes=owner.held,
        exceeded=dict(budgets.exceeded.get(owner.name, {})),
    )


def _sum(account: Account) -> Usage:
    return Usage(connections=account.connections, streams=account.streams, held_bytes=account.held)
