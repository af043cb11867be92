"""The state that a server tells by ``grpc.health.v1``: the same for all of its services.

Owns the state, and the calls that ask for it once; each server sends it to watchers in its own way.
Invariants: nothing of a request is kept, so names that clients make up take no memory; no watch
outlasts the server's stop.

Source: gRPC's "Health Checking Protocol".
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Collection

_Answer = health_pb2.HealthCheckResponse


class ToldHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
    """Serves everything but watches.

    Args:
        names: the services, and the empty name of the server as a whole.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._serving = self.ended = False
        self.changed = asyncio.Event()

    def tell(self, *, serving: bool) -> None:
        """Say this from now on."""
        if serving != self._serving:
            self._serving = serving
            self.changed.set()
            self.changed = asyncio.Event()

    def end(self) -> None:
        """Say NOT_SERVING from now on, and end every watch: the server stops."""
        self.ended = True
        self.changed.set()

    async def Check(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return the state now; NOT_FOUND for a service that is not ours."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service here")
        return self.answer(request.service)

    async def List(  # noqa: N802  gRPC's name
        self, request: health_pb2.HealthListRequest, context: Any
    ) -> health_pb2.HealthListResponse:
        """Return the state of every service now."""
        del request, context
        return health_pb2.HealthListResponse(
            statuses={name: self.answer(name) for name in self._names}
        )

    def answer(self, service: str) -> health_pb2.HealthCheckResponse:
        """Return the state now; SERVICE_UNKNOWN for a service that is not ours."""
        if service not in self._names:
            return _Answer(status=_Answer.SERVICE_UNKNOWN)
        serving = self._serving and not self.ended
        return _Answer(status=_Answer.SERVING if serving else _Answer.NOT_SERVING)
