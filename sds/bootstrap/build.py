"""Builds bootstraps, typed with envoy-data-plane, so that a misspelt field cannot be written.

Owns what every Envoy of ours is told (the reasons stand in :mod:`sds.bootstrap.render`).
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
from envoy_data_plane.envoy.config.listener import v3 as listener_v3
from envoy_data_plane.envoy.config.route import v3 as route_v3
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router_v3
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm_v3
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls_v3
from envoy_data_plane.envoy.extensions.upstreams.http import v3 as upstream_v3
from envoy_data_plane.google.protobuf import Any as AnyMessage

from sds.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from sds.bootstrap.plan import Endpoint, Inbound, Outbound, SecretSource

SDS_CLUSTER: Final = "sds"
"""Name of the cluster that leads to the agent's socket."""

PEER_BODY: Final = (
    '{"peer": "%DOWNSTREAM_PEER_URI_SAN%", "serial": "%DOWNSTREAM_PEER_SERIAL%", '
    '"not_after": "%DOWNSTREAM_PEER_CERT_V_END(%Y-%m-%dT%H:%M:%SZ)%", '
    '"status": %RESPONSE_CODE%, "why": "%RESPONSE_CODE_DETAILS%"}\n'
)
"""What a server without an application answers: which peer it saw."""

SERVER_CERTIFICATE_HEADER: Final = "x-sds-server-certificate"
"""Header in which a client Envoy reports the certificate that the server showed it."""

_SO_REUSEPORT: Final = (1, 15)
"""Level and name of the socket option on Linux (``asm-generic/socket.h``)."""


def make_bootstrap(
    *,
    node: str,
    secrets: SecretSource,
    admin: Endpoint | None,
    inbound: Sequence[Inbound] = (),
    outbound: Sequence[Outbound] = (),
    admin_reuse_port: bool = False,
) -> bootstrap_v3.Bootstrap:
    """A complete bootstrap.

    Args:
        node: Envoy's node id and cluster; it names the Envoy in ``sds status`` and decides
            nothing about what the Envoy may have.
        secrets: the agent's socket and the names to ask for.
        admin: the admin interface, or None for none.
        inbound: mTLS listeners.
        outbound: plain listeners whose requests leave by mTLS.
        admin_reuse_port: bind admin with SO_REUSEPORT, so that a supervisor may hold the port
            while Envoy restarts (listeners do so anyway).
    """
    listeners = []
    clusters = [_sds_cluster(secrets.socket)]
    for number, entry in enumerate(inbound):
        name = _numbered("inbound", number)
        listeners.append(_inbound_listener(name, entry, secrets))
        if entry.upstream is not None:
            clusters.append(_plain_cluster(name, entry.upstream))
    for number, exit_ in enumerate(outbound):
        name = _numbered("outbound", number)
        targets = {
            domain: _numbered(name, position) for position, domain in enumerate(exit_.upstreams)
        }
        listeners.append(_outbound_listener(name, exit_, targets))
        clusters.extend(
            _mtls_cluster(target, exit_.upstreams[domain], exit_, secrets)
            for domain, target in targets.items()
        )
    return bootstrap_v3.Bootstrap(
        node=core_v3.Node(id=node, cluster=node),
        admin=_admin(admin, reuse_port=admin_reuse_port) if admin else None,
        dynamic_resources=bootstrap_v3.BootstrapDynamicResources(
            ads_config=_api_config_source(delta=secrets.protocol.is_delta)
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


def _api_config_source(*, delta: bool) -> core_v3.ApiConfigSource:
    kind = core_v3.ApiConfigSourceApiType
    back_off = core_v3.BackoffStrategy(
        base_interval=timedelta(milliseconds=100), max_interval=timedelta(seconds=1)
    )
    return core_v3.ApiConfigSource(
        api_type=kind.DELTA_GRPC if delta else kind.GRPC,
        transport_api_version=core_v3.ApiVersion.V3,
        set_node_on_first_message_only=True,
        grpc_services=[
            core_v3.GrpcService(
                envoy_grpc=core_v3.GrpcServiceEnvoyGrpc(
                    cluster_name=SDS_CLUSTER,
                    retry_policy=core_v3.RetryPolicy(retry_back_off=back_off),
                )
            )
        ],
    )


def _secret(name: str, source: SecretSource) -> tls_v3.SdsSecretConfig:
    config = core_v3.ConfigSource(resource_api_version=core_v3.ApiVersion.V3)
    if source.protocol.is_ads:
        config.ads = core_v3.AggregatedConfigSource()
    else:
        config.api_config_source = _api_config_source(delta=source.protocol.is_delta)
    return tls_v3.SdsSecretConfig(name=name, sds_config=config)


def _common_tls(source: SecretSource, *, alpn: Sequence[str] = ()) -> tls_v3.CommonTlsContext:
    return tls_v3.CommonTlsContext(
        tls_params=tls_v3.TlsParameters(
            tls_minimum_protocol_version=tls_v3.TlsParametersTlsProtocol.TLSv1_3,
            tls_maximum_protocol_version=tls_v3.TlsParametersTlsProtocol.TLSv1_3,
        ),
        alpn_protocols=list(alpn),
        tls_certificate_sds_secret_configs=[_secret(source.certificate, source)],
        validation_context_sds_secret_config=_secret(source.validation, source),
    )


# --- listeners ----------------------------------------------------------------------------------


def _inbound_listener(name: str, entry: Inbound, source: SecretSource) -> listener_v3.Listener:
    context = tls_v3.DownstreamTlsContext(
        common_tls_context=_common_tls(source, alpn=["h2", "http/1.1"]),
        require_client_certificate=True,
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    manager = _manager(name, {"*": name if entry.upstream else None})
    details = hcm_v3.HttpConnectionManagerForwardClientCertDetails
    manager.forward_client_cert_details = details.SANITIZE_SET
    manager.set_current_client_cert_details = (
        hcm_v3.HttpConnectionManagerSetCurrentClientCertDetails(uri=True)
    )
    if entry.upstream is None:
        manager.local_reply_config = hcm_v3.LocalReplyConfig(
            body_format=core_v3.SubstitutionFormatString(
                text_format_source=core_v3.DataSource(inline_string=PEER_BODY),
                content_type="application/json",
            )
        )
    return _listener(
        name,
        entry.listen,
        manager,
        core_v3.TransportSocket(
            name="envoy.transport_sockets.tls", typed_config=AnyMessage.pack(context)
        ),
    )


def _outbound_listener(
    name: str, exit_: Outbound, targets: Mapping[str, str]
) -> listener_v3.Listener:
    manager = _manager(name, targets)
    if exit_.fresh_connections and manager.route_config is not None:
        manager.route_config.response_headers_to_add = [
            core_v3.HeaderValueOption(
                header=core_v3.HeaderValue(
                    key=SERVER_CERTIFICATE_HEADER, value="%UPSTREAM_PEER_CERT%"
                )
            )
        ]
    return _listener(name, exit_.listen, manager, None)


def _manager(name: str, targets: Mapping[str, str | None]) -> hcm_v3.HttpConnectionManager:
    """An HTTP connection manager that sends each domain to its cluster, or answers itself."""
    hosts = [
        route_v3.VirtualHost(
            name=target or name,
            domains=[domain],
            routes=[
                route_v3.Route(
                    match=route_v3.RouteMatch(prefix="/"),
                    route=route_v3.RouteAction(cluster=target) if target else None,
                    direct_response=None if target else route_v3.DirectResponseAction(status=200),
                )
            ],
        )
        for domain, target in targets.items()
    ]
    return hcm_v3.HttpConnectionManager(
        stat_prefix=name,
        route_config=route_v3.RouteConfiguration(name=name, virtual_hosts=hosts),
        http_filters=[
            hcm_v3.HttpFilter(
                name="envoy.filters.http.router", typed_config=AnyMessage.pack(router_v3.Router())
            )
        ],
    )


def _listener(
    name: str,
    listen: Endpoint,
    manager: hcm_v3.HttpConnectionManager,
    transport_socket: core_v3.TransportSocket | None,
) -> listener_v3.Listener:
    if not listen.is_address:
        raise ConfigurationError(
            f"listener {name}: {listen.host!r} is not an IP address",
            advice="Envoy listens on addresses; write 127.0.0.1 for this machine only",
        )
    chain = listener_v3.FilterChain(
        transport_socket=transport_socket,
        filters=[
            listener_v3.Filter(
                name="envoy.filters.network.http_connection_manager",
                typed_config=AnyMessage.pack(manager),
            )
        ],
    )
    return listener_v3.Listener(
        name=name, stat_prefix=name, address=_address(listen), filter_chains=[chain]
    )


# --- clusters -----------------------------------------------------------------------------------


def _plain_cluster(name: str, endpoint: Endpoint) -> cluster_v3.Cluster:
    """The application behind an mTLS listener."""
    kind = cluster_v3.ClusterDiscoveryType
    return cluster_v3.Cluster(
        name=name,
        type=kind.STATIC if endpoint.is_address else kind.STRICT_DNS,
        connect_timeout=timedelta(seconds=5),
        load_assignment=_assignment(name, _address(endpoint)),
    )


def _mtls_cluster(
    name: str, endpoint: Endpoint, exit_: Outbound, source: SecretSource
) -> cluster_v3.Cluster:
    own_stream = replace(source, protocol=source.protocol.for_clusters)
    context = tls_v3.UpstreamTlsContext(
        common_tls_context=_common_tls(own_stream),
        sni="" if endpoint.is_address else endpoint.host,
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


def _address(endpoint: Endpoint) -> core_v3.Address:
    return core_v3.Address(
        socket_address=core_v3.SocketAddress(address=endpoint.host, port_value=endpoint.port)
    )


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
        address=_address(listen), socket_options=[option] if reuse_port else []
    )
