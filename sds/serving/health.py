"""``grpc.health.v1`` on the sockets of an agent.

Owns the state that one socket reports. Invariants: a watcher that does not read delays only itself
(in grpcio-health-checking's own servicer it delays all watchers of a service and the code that sets
its state, because they share a lock); nothing of a request is kept, so names that clients make up
take no memory; no watch outlasts the server's stop.

Source: gRPC's "Health Checking Protocol".
"""

from __future__ import annotations

from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from sds.serving.calls import ADS_SERVICE, ECDS_SERVICE, SDS_SERVICE
from sds.transport.health import ToldHealth

HEALTH_SERVICE: Final[str] = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_NAMES: Final = frozenset({"", SDS_SERVICE, ECDS_SERVICE, ADS_SERVICE})
"""The server as a whole, and the services that serve secrets: all in the same state."""


class SocketHealth(ToldHealth):
    """Serves ``grpc.health.v1`` on one socket."""

    def __init__(self) -> None:
        super().__init__(_NAMES)

    async def Watch(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> None:
        """Send the state now and whenever it changes.

        For a service that is not ours, the state is SERVICE_UNKNOWN.
        """
        service = request.service if request.service in _NAMES else "unknown"
        del request
        said = None
        while not self.ended:
            changed = self.changed
            now = self.answer(service)
            if now != said:
                said = now
                await context.write(now)
                continue  # the state may have changed while the client did not read
            await changed.wait()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "this agent is stopping: connect again")
