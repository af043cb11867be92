"""Builds bootstraps from envoy-data-plane's types, which refuse a misspelt field.

Owns the content of our bootstraps (:mod:`sds.bootstrap.commented_yaml` has the reasons).
Invariants: nothing secret is in a bootstrap, and each one made here is accepted by every Envoy
version that we test. Importing envoy-data-plane takes a second: import this late.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap_v3
from envoy_data_plane.envoy.config.cluster import v3 as cluster_v3
from envoy_data_plane.envoy.config.core import v3 as core_v3
from envoy_data_plane.envoy.config.endpoint import v3 as endpoint_v3
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls_v3
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as upstream_v3
from envoy_data_plane.google.protobuf import Any as AnyMessage

from sds.bootstrap.listeners import inbound_listener, outbound_listener
from sds.bootstrap.sources import SDS_CLUSTER, api_config_source, common_tls, socket_address

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sds.bootstrap.plan import Endpoint, Inbound, Outbound, SecretSource

_SO_REUSEPORT: Final = (1, 15)
"""The level and name of the socket option on Linux (``asm-generic/socket.h``)."""


def make_bootstrap(
    *,
    node: str,
    secrets: SecretSource,
    admin: Endpoint | None,
    inbound: Sequence[Inbound] = (),
    outbound: Sequence[Outbound] = (),
    admin_reuse_port: bool = False,
) -> bootstrap_v3.Bootstrap:
    """Make a complete bootstrap.

    Args:
        node: Envoy's node id and cluster; it names the Envoy in ``sds status`` and decides
            nothing about what the Envoy may have.
        secrets: the agent's socket and the names to ask for.
        admin: the admin interface, or None for none.
        inbound: mTLS listeners.
        outbound: plain listeners whose requests leave by mTLS.
        admin_reuse_port: whether to bind admin with SO_REUSEPORT, so that a supervisor may keep the
            port while Envoy restarts (listeners always do so).
    """
    listeners = []
    clusters = [_sds_cluster(secrets.socket)]
    for number, entry in enumerate(inbound):
        name = _numbered("inbound", number)
        listeners.append(inbound_listener(name, entry, secrets))
        if entry.upstream is not None:
            clusters.append(_plain_cluster(name, entry.upstream))
    for number, exit_ in enumerate(outbound):
        name = _numbered("outbound", number)
        targets = {
            domain: _numbered(name, position) for position, domain in enumerate(exit_.upstreams)
        }
        listeners.append(outbound_listener(name, exit_, targets))
        clusters.extend(
            _mtls_cluster(target, exit_.upstreams[domain], exit_, secrets)
            for domain, target in targets.items()
        )
    return bootstrap_v3.Bootstrap(
        node=core_v3.Node(id=node, cluster=node),
        admin=_admin(admin, reuse_port=admin_reuse_port) if admin else None,
        dynamic_resources=bootstrap_v3.BootstrapDynamicResources(
            ads_config=api_config_source(delta=secrets.protocol.is_delta)
        )
        if secrets.protocol.is_ads
        else None,
        static_resources=bootstrap_v3.BootstrapStaticResources(
            listeners=listeners, clusters=clusters
        ),
    )


# --- the way to the agent -----------------------------------------------------------------------


def _sds_cluster(socket: Path) -> cluster_v3.Cluster:
    http2 = core_v3.Http2ProtocolOptions(
        connection_keepalive=core_v3.KeepaliveSettings(
            interval=timedelta(seconds=30), timeout=timedelta(seconds=10)
        )
    )
    pipe = core_v3.Address(pipe=core_v3.Pipe(path=str(socket)))
    return cluster_v3.Cluster(
        name=SDS_CLUSTER,
        type=cluster_v3.ClusterDiscoveryType.STATIC,
        connect_timeout=timedelta(seconds=1),
        typed_extension_protocol_options=_http_options(
            upstream_v3.HttpProtocolOptions(
                explicit_http_config=upstream_v3.HttpProtocolOptionsExplicitHttpConfig(
                    http2_protocol_options=http2
                )
            )
        ),
        load_assignment=_assignment(SDS_CLUSTER, pipe),
    )


# --- clusters -----------------------------------------------------------------------------------


def _plain_cluster(name: str, endpoint: Endpoint) -> cluster_v3.Cluster:
    """Make the cluster of the application behind an mTLS listener."""
    kind = cluster_v3.ClusterDiscoveryType
    return cluster_v3.Cluster(
        name=name,
        type=kind.STATIC if endpoint.is_address else kind.STRICT_DNS,
        connect_timeout=timedelta(seconds=5),
        load_assignment=_assignment(name, socket_address(endpoint)),
    )


def _mtls_cluster(
    name: str, endpoint: Endpoint, exit_: Outbound, source: SecretSource
) -> cluster_v3.Cluster:
    own_stream = replace(source, protocol=source.protocol.for_clusters)
    context = tls_v3.UpstreamTlsContext(
        common_tls_context=common_tls(own_stream),
        # RFC 6066, section 3: without the dot at the end.
        sni="" if endpoint.is_address else endpoint.host.removesuffix("."),
        max_session_keys=0 if exit_.full_handshakes else None,
    )
    options = upstream_v3.HttpProtocolOptions(
        auto_config=upstream_v3.HttpProtocolOptionsAutoHttpConfig(),
        common_http_protocol_options=core_v3.HttpProtocolOptions(max_requests_per_connection=1)
        if exit_.fresh_connections
        else None,
    )
    return replace(
        _plain_cluster(name, endpoint),
        typed_extension_protocol_options=_http_options(options),
        transport_socket=core_v3.TransportSocket(
            name="envoy.transport_sockets.tls", typed_config=AnyMessage.pack(context)
        ),
    )


# --- small parts --------------------------------------------------------------------------------


def _numbered(name: str, number: int) -> str:
    return f"{name}-{number + 1}" if number else name


def _assignment(name: str, address: core_v3.Address) -> endpoint_v3.ClusterLoadAssignment:
    one = endpoint_v3.LbEndpoint(endpoint=endpoint_v3.Endpoint(address=address))
    return endpoint_v3.ClusterLoadAssignment(
        cluster_name=name, endpoints=[endpoint_v3.LocalityLbEndpoints(lb_endpoints=[one])]
    )


def _http_options(options: upstream_v3.HttpProtocolOptions) -> dict[str, AnyMessage]:
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": AnyMessage.pack(options)}


def _admin(listen: Endpoint, *, reuse_port: bool) -> bootstrap_v3.Admin:
    level, name = _SO_REUSEPORT
    option = core_v3.SocketOption(
        description="SO_REUSEPORT",
        level=level,
        name=name,
        int_value=1,
        state=core_v3.SocketOptionSocketState.STATE_PREBIND,
    )
    return bootstrap_v3.Admin(
        address=socket_address(listen), socket_options=[option] if reuse_port else []
    )
