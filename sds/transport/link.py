"""What a call needs of its connection.

Owns the port between one call and the connection that carries it. Invariant: only the connection
knows sockets, HTTP/2 and other calls; a call knows only this.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from sds.transport.budget import Owner
    from sds.transport.turns import Turns


class Link(Protocol):
    """What a call needs of its connection."""

    @property
    def peer(self) -> str:
        """Return the connection's name."""
        ...

    @property
    def caller(self) -> object:
        """Return the object that the connection was given at accept."""
        ...

    @property
    def owner(self) -> Owner:
        """Return the owner whose budget the connection uses."""
        ...

    def send(self, stream: int, message: bytes) -> bool:
        """Send a message, or queue what cannot be sent yet; say whether another one may follow.

        Raises:
            LimitError: it would have to wait, and the owner may not hold so much.
        """
        ...

    def blocked(self, stream: int) -> bool:
        """Say whether something of this stream, or of the whole connection, waits to be sent."""
        ...

    def finish(self, stream: int, status: int, message: str) -> None:
        """End the stream."""
        ...

    def cut(self, stream: int) -> None:
        """End the stream at once, or the whole connection if its client reads nothing."""
        ...

    def client_left(self) -> bool:
        """Say whether the client sends nothing more, although that may be unread yet."""
        ...

    def taken(self, stream: int, count: int) -> None:
        """Note that the request has room for so many more bytes."""
        ...

    def hold(self, count: int) -> None:
        """Count bytes that are held in addition for this connection; negative ones were let go.

        Raises:
            LimitError: that is too many; they count nevertheless.
        """
        ...

    def wake(self, future: asyncio.Future[None]) -> None:
        """Let the handler that waits for ``future`` go on when it is the owner's turn."""
        ...

    @property
    def turns(self) -> Turns:
        """Return the turns of the event loop."""
        ...

    async def turn(self) -> None:
        """Return when it is the owner's turn again."""
        ...

    def soon(self, job: Callable[[], bool]) -> None:
        """Run a job in the owner's turns, until it says that nothing is left."""
        ...
