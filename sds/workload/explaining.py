"""What attestors tell a caller about itself beyond selectors, to help people find a difference.

Owns the port :class:`Explaining`. Invariant: nothing here decides anything; an attestor that fails
is left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from sds.errors import PeerGoneError, WorkloadError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.workload.peer import Peer


@runtime_checkable
class Explaining(Protocol):
    """An attestor that can explain more."""

    async def explain(self, peer: Peer) -> tuple[str, ...]:
        """Return lines about ``peer`` itself; wait a bounded time.

        Raises:
            WorkloadError: they cannot be found out.
        """
        ...


async def explained(attestors: Iterable[object], peer: Peer) -> tuple[str, ...]:
    """Return what these attestors say about the caller.

    Raises:
        PeerGoneError: the process has ended.
    """
    lines: list[str] = []
    for attestor in attestors:
        if isinstance(attestor, Explaining):
            try:
                lines += await attestor.explain(peer)
                peer.check()
            except PeerGoneError:
                raise
            except WorkloadError as error:
                lines.append(f"# {error.message}")
    return tuple(lines)
