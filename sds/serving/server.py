"""gRPC servers for secrets: limits, health, reflection.

Owns how a server of this project is made, on our own transport (:mod:`sds.transport`).
Invariant: a server enforces its limits on every client before it parses a byte of a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

from envoy.service.discovery.v3 import ads_pb2
from envoy.service.extension.v3 import config_discovery_pb2
from envoy.service.secret.v3 import sds_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from sds.serving.health import SocketHealth
from sds.transport.events import ConnectionLimits
from sds.transport.server import Server, ServerLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    import grpc

    from sds.serving.limits import ServingLimits
    from sds.transport.budget import Budgets

# Serving works on bytes and needs no descriptor; reflection needs them loaded.
DESCRIBED: Final = (sds_pb2.DESCRIPTOR, ads_pb2.DESCRIPTOR, config_discovery_pb2.DESCRIPTOR)
_SPARE_STREAMS: Final = 100
"""How many streams HTTP/2 admits beyond ``streams_per_connection``: the first ones over that limit
are refused with a text, and debugging tools find room."""


AnyServer: TypeAlias = "Server | grpc.aio.Server"


def make_server(
    limits: ServingLimits,
    handlers: Iterable[grpc.GenericRpcHandler],
    *,
    budgets: Budgets | None = None,
) -> Server:
    """Make a server for the clients of a workload's or a node's socket; the caller adds sockets.

    Args:
        limits: the limits of each client.
        handlers: the methods.
        budgets: the budgets of connections' owners, shared with other servers; new ones if left
            out.
    """
    connection = ConnectionLimits(concurrent_streams=limits.streams_per_connection + _SPARE_STREAMS)
    return Server(
        handlers,
        limits=ServerLimits(message_bytes=limits.message_bytes, connection=connection),
        budgets=budgets,
    )


def add_health(server: AnyServer) -> SocketHealth:
    """Add grpc.health.v1, which says NOT_SERVING until it is told otherwise."""
    servicer = SocketHealth()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    if isinstance(server, Server):  # grpc.aio cancels what its grace does not suffice for
        server.at_stop(servicer.end)
    return servicer


def add_reflection(server: AnyServer, services: Iterable[str]) -> None:
    """Add server reflection for these services (and itself), so that grpcurl needs no files."""
    servicer = reflection.aio.ReflectionServicer((*services, reflection.SERVICE_NAME))
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)
