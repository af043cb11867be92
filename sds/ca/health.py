"""The authority's ``grpc.health.v1``: whether it can issue now.

Invariants: SERVING means that the authority can sign now (a policy may still refuse); a watcher
that does not read holds up only itself (grpcio-health-checking's own servicer writes under a lock
that all watchers share); watchers cannot use up the room for exchanges.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sds.exchange.wire import SERVICE

if TYPE_CHECKING:
    from sds.ca.signers import SigningState
    from sds.clock import Clock

_NAMES: Final = frozenset({"", SERVICE})
_LOOK_SECONDS: Final = 1.0


class AuthorityHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    """Serves ``grpc.health.v1`` of the authority.

    Args:
        watchers: the most watches at once. A further one is told that there is no such service,
            which gRPC's client-side health checking takes for healthy.
        write_seconds: how long a watcher may take to read one answer.
    """

    def __init__(self, *, watchers: int, write_seconds: float = 30.0) -> None:
        self._limit = watchers
        self._write_seconds = write_seconds
        self._watching = 0
        self._serving = self._ended = False
        self._changed = asyncio.Event()

    def tell(self, *, serving: bool) -> None:
        """Say this from now on."""
        if serving != self._serving:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    def end(self) -> None:
        """End every watch: the server stops."""
        self._ended = True
        self._changed.set()

    async def Check(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return the state now.

        Raises:
            AbortedError: NOT_FOUND: the service is not ours.
        """
        if request.service not in _NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return self._answer(request.service)

    async def List(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthListRequest, context: Any
    ) -> health_pb2.HealthListResponse:
        """Return the state of every service now."""
        del request, context
        statuses = {name: self._answer(name) for name in _NAMES}
        return health_pb2.HealthListResponse(statuses=statuses)

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
            while not self._ended:
                changed = self._changed
                async with asyncio.timeout(self._write_seconds):
                    await context.write(self._answer(request.service))
                await changed.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the authority is stopping")
        except TimeoutError:
            context.cut()  # as for exchanges, a status cannot be sent behind what nobody reads
        finally:
            self._watching -= 1

    def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        status = health_pb2.HealthCheckResponse
        if service not in _NAMES:
            return status(status=status.SERVICE_UNKNOWN)
        return status(status=status.SERVING if self._serving else status.NOT_SERVING)


async def tell_health(health: AuthorityHealth, signing: SigningState, clock: Clock) -> None:
    """Follow the signer until cancelled; it ends by the wall clock, which may be set."""
    await signing.ready.wait()
    while True:
        health.tell(serving=signing.able)
        await clock.sleep(_LOOK_SECONDS)
