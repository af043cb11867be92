"""The ``socket`` attestor: the socket to which a caller connected.

Owns the selector ``socket:name``. Invariant: a socket's name never changes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sds.workload.entitlement import Selector
from sds.workload.facts import Facts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.workload.attestors import NodeContext
    from sds.workload.peer import Peer

NODE_WIDE: Final = "node"
"""The name of the node-wide socket, which no workload's own socket has beside it."""


class SocketAttestor:
    """Finds the selector ``socket:name``."""

    name = "socket"
    costly: frozenset[str] = frozenset()

    def __init__(self, socket_name: str) -> None:
        """Make the attestor of the socket with this name in the configuration."""
        self._facts = Facts(selectors=frozenset({Selector("socket:name", socket_name)}))

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        """Return the same facts for every caller of this socket."""
        del peer, needed
        return self._facts

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does nothing: a socket's name never changes."""
        del listener
        return lambda: None

    def notices(self) -> tuple[str, ...]:
        """Return nothing: nothing can be wrong with a name."""
        return ()


class _Kind:
    @contextlib.asynccontextmanager
    async def open(self, node: NodeContext) -> AsyncIterator[SocketAttestor]:
        yield SocketAttestor(node.socket)


KIND: Final = _Kind()
