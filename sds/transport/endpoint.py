"""What a served connection needs of its socket, and how a server makes such endpoints.

Owns the ports, and the endpoints without TLS; :mod:`sds.transport.tls_socket` has those with TLS.
Invariant: an endpoint reads a bounded amount when it is asked to, and keeps output in its order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sds.transport.accepting import turn_away
from sds.transport.connected_socket import ConnectedSocket

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Sequence

    from sds.transport.connected_socket import SocketUser


class SocketEndpoint(Protocol):
    """A connected socket, with TLS or without.

    Attributes:
        unsent: bytes of output that the kernel has not taken.
        written: bytes of output that were given to it since the beginning.
        backlog: bytes of memory of output that waits for the kernel; the user is told of its end.
        held: bytes of memory that depend on the client.
        pending: whether there is something to read although the socket may be silent.
    """

    @property
    def unsent(self) -> int: ...

    @property
    def written(self) -> int: ...

    @property
    def backlog(self) -> int: ...

    @property
    def held(self) -> int: ...

    @property
    def pending(self) -> bool: ...

    def is_closed(self) -> bool:
        """Say whether it is closed, or will be once its output is taken."""
        ...

    def client_left(self) -> bool:
        """Say whether the client sends nothing more, although that may be unread yet."""
        ...

    def resume_reading(self) -> None:
        """Tell the user when there is something to read."""
        ...

    def pause_reading(self) -> None:
        """Stop telling the user that there is something to read."""
        ...

    def read(self) -> memoryview:
        """Read a bounded amount; the result is valid until another endpoint of the loop reads.

        Raises:
            Http2Error: the client broke TLS.
        """
        ...

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write what the kernel takes, and keep the rest for later."""
        ...

    def close(self) -> None:
        """Read no more, and close once the output is taken."""
        ...

    def abort(self) -> None:
        """Close now; output that was not taken is lost."""
        ...


class Endpoints(Protocol):
    """Makes the endpoints of a server's connections."""

    def make(
        self,
        connected: socket.socket,
        loop: asyncio.AbstractEventLoop,
        user: SocketUser,
        buffer: bytearray,
    ) -> SocketEndpoint:
        """Make the endpoint of an accepted socket, which it owns from then on."""
        ...

    def turn_away(self, accepted: socket.socket, text: str) -> None:
        """Close a connection that is not served, and tell the client why if that costs little."""
        ...


class PlainEndpoints:
    """Endpoints without TLS."""

    def make(
        self,
        connected: socket.socket,
        loop: asyncio.AbstractEventLoop,
        user: SocketUser,
        buffer: bytearray,
    ) -> SocketEndpoint:
        return ConnectedSocket(connected, loop, user, buffer)

    def turn_away(self, accepted: socket.socket, text: str) -> None:
        turn_away(accepted, text)
