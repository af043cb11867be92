"""One connection to istiod, shared by independent exchanges.

Owns the moment at which it is closed. Invariant: a connection that is no longer wanted (its address
failed, its roots changed) is closed when the last call on it is done, never during a call, because
one identity's failure must not end another one's renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from sds.authority.channel import verified_channel

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc.aio


class IstioLine:
    """A channel and its users; made on the event loop.

    Args:
        address: ``host:port`` of istiod.
        root: the roots in PEM under which its TLS must be valid.
        server_name: the DNS name that its certificate must have.
        seconds: how long a call waits, and so how long it may take to connect.

    Attributes:
        channel: the connection, which is opened at the first call.
    """

    def __init__(self, address: str, *, root: bytes, server_name: str, seconds: float) -> None:
        self.address = address
        self.root = root
        self.channel: grpc.aio.Channel = verified_channel(
            address,
            root,
            server_name,
            # istiod permits a ping every 15 s. The timeout counts for TCP too: if a replica is gone
            # and acknowledges nothing, the connection ends before the call's deadline.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 3_000),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            seconds=seconds,
        )
        self._users = 0
        self._retired = False
        self._closing: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def used(self) -> Iterator[IstioLine]:
        """Keep the connection open while the block runs."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            self._close_if_done()

    def retire(self) -> None:
        """Close it as soon as nobody uses it."""
        self._retired = True
        self._close_if_done()

    async def closed(self) -> None:
        """Wait until a retired connection that nobody uses is closed."""
        if self._closing is not None:
            await self._closing

    def _close_if_done(self) -> None:
        if self._retired and not self._users and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(
                self.channel.close(), name="istio-channel"
            )
