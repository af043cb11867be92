"""Makes listeners: inbound mTLS with discovered authorization, and plain HTTP for outbound mTLS.

Owns the configuration of each listener. Invariants: an mTLS listener asks the filter that the agent
serves about every request (or TCP connection), and denies all until it has that filter; it matches
paths in one normal form only; an allowed stream or connection ends after a time and must be asked
for again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from envoy_data_plane.envoy.config.core import v3 as core_v3
from envoy_data_plane.envoy.config.listener import v3 as listener_v3
from envoy_data_plane.envoy.config.rbac import v3 as rbac_v3
from envoy_data_plane.envoy.config.route import v3 as route_v3
from envoy_data_plane.envoy.extensions.filters.http.rbac import v3 as http_rbac_v3
from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router_v3
from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm_v3
from envoy_data_plane.envoy.extensions.filters.network.rbac import v3 as network_rbac_v3
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy import v3 as tcp_proxy_v3
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls_v3
from envoy_data_plane.google.protobuf import Any as AnyMessage

from sds.bootstrap.sources import common_tls, config_source, socket_address
from sds.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from sds.bootstrap.plan import Endpoint, Inbound, Outbound, SecretSource

AUTHORIZATION_TCP: Final = "-tcp"
"""The end of the name of a TCP authorization."""
_TYPE: Final = "type.googleapis.com/envoy.extensions.filters.{}.rbac.v3.RBAC"

PEER_BODY: Final = (
    '{"peer": "%DOWNSTREAM_PEER_URI_SAN%", "serial": "%DOWNSTREAM_PEER_SERIAL%", '
    '"not_after": "%DOWNSTREAM_PEER_CERT_V_END(%Y-%m-%dT%H:%M:%SZ)%", '
    '"status": %RESPONSE_CODE%, "why": "%RESPONSE_CODE_DETAILS%"}\n'
)
"""The answer of a server without an application: which peer it saw."""

SERVER_CERTIFICATE_HEADER: Final = "x-sds-server-certificate"
"""The header in which a client Envoy reports the certificate that the server showed it."""


# --- listeners ----------------------------------------------------------------------------------


def inbound_listener(name: str, entry: Inbound, source: SecretSource) -> listener_v3.Listener:
    """Make an mTLS listener in front of an application, or one that answers which peer it saw."""
    alpn = [] if entry.tcp else ["h2", "http/1.1"]
    verified_by = replace(source, validation=entry.validation or source.validation)
    context = tls_v3.DownstreamTlsContext(
        common_tls_context=common_tls(verified_by, alpn=alpn),
        require_client_certificate=True,
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    socket = core_v3.TransportSocket(
        name="envoy.transport_sockets.tls", typed_config=AnyMessage.pack(context)
    )
    if entry.tcp:
        return _listener(name, entry.listen, _tcp_filters(name, entry, source), socket)
    manager = _manager(name, {"*": name if entry.upstream else None}, longest=entry.longest)
    details = hcm_v3.HttpConnectionManagerForwardClientCertDetails
    manager.forward_client_cert_details = details.SANITIZE_SET
    if manager.common_http_protocol_options is not None:
        manager.common_http_protocol_options.max_connection_duration = entry.connection
    manager.http1_safe_max_connection_duration = True
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
    if entry.authorization is not None:
        manager.http_filters.insert(
            0,
            hcm_v3.HttpFilter(
                name=entry.authorization,
                config_discovery=_discovered(
                    source,
                    _TYPE.format("http"),
                    AnyMessage.pack(http_rbac_v3.Rbac(rules=rbac_v3.Rbac())),
                ),
            ),
        )
    return _listener(name, entry.listen, [_http(manager)], socket)


def _tcp_filters(name: str, entry: Inbound, source: SecretSource) -> list[listener_v3.Filter]:
    if entry.upstream is None:
        raise ConfigurationError(
            f"listener {name}: TCP needs an application",
            advice="name where its connections go with --application",
        )
    filters = []
    if entry.authorization is not None:
        denies = network_rbac_v3.Rbac(rules=rbac_v3.Rbac(), stat_prefix=name)
        filters.append(
            listener_v3.Filter(
                name=entry.authorization + AUTHORIZATION_TCP,
                config_discovery=_discovered(
                    source, _TYPE.format("network"), AnyMessage.pack(denies)
                ),
            )
        )
    proxy = tcp_proxy_v3.TcpProxy(
        stat_prefix=name, cluster=name, max_downstream_connection_duration=entry.longest
    )
    filters.append(
        listener_v3.Filter(
            name="envoy.filters.network.tcp_proxy", typed_config=AnyMessage.pack(proxy)
        )
    )
    return filters


def _discovered(
    source: SecretSource, type_url: str, default: AnyMessage
) -> core_v3.ExtensionConfigSource:
    """Make a filter that the agent serves; ``default`` applies until it is served."""
    return core_v3.ExtensionConfigSource(
        config_source=config_source(source), type_urls=[type_url], default_config=default
    )


def outbound_listener(
    name: str, exit_: Outbound, targets: Mapping[str, str]
) -> listener_v3.Listener:
    """Make a plain HTTP listener of this machine; the peer's own Envoy decides about requests."""
    manager = _manager(name, targets, longest=exit_.longest)
    if exit_.fresh_connections and manager.route_config is not None:
        manager.route_config.response_headers_to_add = [
            core_v3.HeaderValueOption(
                header=core_v3.HeaderValue(
                    key=SERVER_CERTIFICATE_HEADER, value="%UPSTREAM_PEER_CERT%"
                )
            )
        ]
    return _listener(name, exit_.listen, [_http(manager)], None)


def _manager(
    name: str, targets: Mapping[str, str | None], *, longest: timedelta
) -> hcm_v3.HttpConnectionManager:
    """Make an HTTP connection manager that sends each domain to its cluster, or answers itself."""
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
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=(
            hcm_v3.HttpConnectionManagerPathWithEscapedSlashesAction.REJECT_REQUEST
        ),
        common_http_protocol_options=core_v3.HttpProtocolOptions(max_stream_duration=longest),
        http_filters=[
            hcm_v3.HttpFilter(
                name="envoy.filters.http.router", typed_config=AnyMessage.pack(router_v3.Router())
            )
        ],
    )


def _http(manager: hcm_v3.HttpConnectionManager) -> listener_v3.Filter:
    return listener_v3.Filter(
        name="envoy.filters.network.http_connection_manager", typed_config=AnyMessage.pack(manager)
    )


def _listener(
    name: str,
    listen: Endpoint,
    filters: list[listener_v3.Filter],
    transport_socket: core_v3.TransportSocket | None,
) -> listener_v3.Listener:
    if not listen.is_address:
        raise ConfigurationError(
            f"listener {name}: {listen.host!r} is not an IP address",
            advice="Envoy listens on addresses; write 127.0.0.1 for this machine only",
        )
    chain = listener_v3.FilterChain(transport_socket=transport_socket, filters=filters)
    return listener_v3.Listener(
        name=name, stat_prefix=name, address=socket_address(listen), filter_chains=[chain]
    )
