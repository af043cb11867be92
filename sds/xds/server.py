"""gRPC servers for secrets: channel options, health, reflection, channelz.

Owns how a ``grpc.aio.Server`` of this project is made. Invariant: a server holds what the limits
say, for any client, before a byte of a request is parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from envoy.service.discovery.v3 import ads_pb2
from envoy.service.secret.v3 import sds_pb2
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from sds.xds.service import ADS_SERVICE, SDS_SERVICE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.xds.limits import Limits

HEALTH_SERVICE: Final[str] = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# Serving works on bytes and needs no descriptor; reflection needs them loaded.
DESCRIBED: Final = (sds_pb2.DESCRIPTOR, ads_pb2.DESCRIPTOR)
CHANNELZ_SERVICE: Final = "grpc.channelz.v1.Channelz"


def server_options(limits: Limits) -> list[tuple[str, Any]]:
    """Channel options of a server that serves Envoys on this host."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        # Envoy's connection_keepalive may ping often and without calls: never a reason to part.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        # One process owns a socket; two that share it would each see half of the clients.
        ("grpc.so_reuseport", 0),
    ]


def make_server(limits: Limits, handlers: Iterable[grpc.GenericRpcHandler]) -> grpc.aio.Server:
    """A server with these handlers; bind and start it yourself."""
    server = grpc.aio.server(options=server_options(limits))
    server.add_generic_rpc_handlers(tuple(handlers))
    return server


def add_health(server: grpc.aio.Server) -> health.aio.HealthServicer:
    """Add grpc.health.v1; starts as NOT_SERVING, set it with :func:`set_health`."""
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    return servicer


async def set_health(servicer: health.aio.HealthServicer, *, serving: bool) -> None:
    """Tell whether secrets are served: for the server as a whole ("") and for each service."""
    status = (
        health_pb2.HealthCheckResponse.SERVING
        if serving
        else health_pb2.HealthCheckResponse.NOT_SERVING
    )
    for service in ("", SDS_SERVICE, ADS_SERVICE):
        await servicer.set(service, status)


def add_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Add server reflection for these services (and itself), so that grpcurl needs no files."""
    reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server)


def add_channelz(server: grpc.aio.Server) -> None:
    """Add channelz: sockets and calls of the whole process, so for the admin socket only."""
    channelz.add_channelz_servicer(server)
