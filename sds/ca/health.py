"""The authority's ``grpc.health.v1``: whether it can issue now.

Invariants: SERVING means that the authority can sign now (a policy may still refuse); a watcher
that does not read holds up only itself (grpcio-health-checking's own servicer writes under a lock
that all watchers share); watchers cannot use up the room for exchanges.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc

from sds.exchange.wire import SERVICE
from sds.transport.health import ToldHealth

if TYPE_CHECKING:
    from grpc_health.v1 import health_pb2

    from sds.ca.signers import SigningState
    from sds.clock import Clock

_NAMES: Final = frozenset({"", SERVICE})
_LOOK_SECONDS: Final = 1.0


class AuthorityHealth(ToldHealth):
    """Serves ``grpc.health.v1`` of the authority.

    Args:
        watchers: the most watches at once. A further one is told that there is no such service,
            which gRPC's client-side health checking takes for healthy.
        write_seconds: how long a watcher may take to read one answer.
    """

    def __init__(self, *, watchers: int, write_seconds: float = 30.0) -> None:
        super().__init__(_NAMES)
        self._limit = watchers
        self._write_seconds = write_seconds
        self._watching = 0

    async def Watch(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Send the state now and whenever it changes.

        Raises:
            AbortedError: UNIMPLEMENTED: too many clients watch; UNAVAILABLE: the server stops; or
                this client does not read.
        """
        if self._watching >= self._limit:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "too many watch")
        self._watching += 1
        try:
            while not self.ended:
                changed = self.changed
                async with asyncio.timeout(self._write_seconds):
                    await context.write(self.answer(request.service))
                await changed.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the authority is stopping")
        except TimeoutError:
            context.cut()  # as for exchanges, a status cannot be sent behind what nobody reads
        finally:
            self._watching -= 1


async def tell_health(health: AuthorityHealth, signing: SigningState, clock: Clock) -> None:
    """Follow the signer until cancelled; it ends by the wall clock, which may be set."""
    await signing.ready.wait()
    while True:
        health.tell(serving=signing.able)
        await clock.sleep(_LOOK_SECONDS)
