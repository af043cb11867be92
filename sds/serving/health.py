"""``grpc.health.v1`` on the sockets of an agent.

Owns the state that one socket reports. Invariants: a watcher that does not read delays only itself
(in grpcio-health-checking's own servicer it delays all watchers of a service and the code that sets
its state, because they share a lock); nothing of a request is kept, so names that clients make up
take no memory; no watch outlasts the server's stop.

Source: gRPC's "Health Checking Protocol".
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sds.serving.calls import ADS_SERVICE, ECDS_SERVICE, SDS_SERVICE

HEALTH_SERVICE: Final[str] = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_NAMES: Final = frozenset({"", SDS_SERVICE, ECDS_SERVICE, ADS_SERVICE})
"""The server as a whole, and the services that serve secrets: all in the same state."""
_Answer = health_pb2.HealthCheckResponse


class SocketHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    """Serves ``grpc.health.v1`` on one socket."""

    def __init__(self) -> None:
        self._serving = self._ended = False
        self._changed = asyncio.Event()

    def tell(self, *, serving: bool) -> None:
        """Set whether secrets are served."""
        if serving is not self._serving:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    def end(self) -> None:
        """Say NOT_SERVING from now on, and end every watch: the server stops."""
        self._ended = True
        self._changed.set()

    async def Check(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return the state now; NOT_FOUND for a service that is not ours."""
        if request.service not in _NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return _Answer(status=self._status())

    async def List(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthListRequest, context: Any
    ) -> health_pb2.HealthListResponse:
        """Return the state of every service now."""
        del request, context
        state = _Answer(status=self._status())
        return health_pb2.HealthListResponse(statuses=dict.fromkeys(_NAMES, state))

    async def Watch(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Send the state now and whenever it changes.

        For a service that is not ours, the state is SERVICE_UNKNOWN.
        """
        known = request.service in _NAMES
        del request
        said = None
        while not self._ended:
            changed = self._changed
            now = self._status() if known else _Answer.SERVICE_UNKNOWN
            if now != said:
                said = now
                await context.write(_Answer(status=now))
                continue  # the state may have changed while the client did not read
            await changed.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "this agent is stopping: connect again")

    def _status(self) -> Any:
        serving = self._serving and not self._ended
        return _Answer.SERVING if serving else _Answer.NOT_SERVING
