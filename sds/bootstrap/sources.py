"""Makes the configuration by which an Envoy asks the agent: sources, secrets, and TLS with them.

Owns the configuration of every stream to the agent. Invariant: nothing secret is in it.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from envoy_data_plane.envoy.config.core import v3 as core_v3
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls_v3

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.bootstrap.plan import Endpoint, SecretSource

SDS_CLUSTER: Final = "sds"
"""The name of the cluster that leads to the agent's socket."""


def socket_address(endpoint: Endpoint) -> core_v3.Address:
    """Return the endpoint as Envoy writes it."""
    return core_v3.Address(
        socket_address=core_v3.SocketAddress(address=endpoint.host, port_value=endpoint.port)
    )


def config_source(source: SecretSource) -> core_v3.ConfigSource:
    """Make the config source of all that this Envoy discovers, in the source's xDS variant."""
    config = core_v3.ConfigSource(resource_api_version=core_v3.ApiVersion.V3)
    if source.protocol.is_ads:
        config.ads = core_v3.AggregatedConfigSource()
    else:
        config.api_config_source = api_config_source(delta=source.protocol.is_delta)
    return config


def api_config_source(*, delta: bool) -> core_v3.ApiConfigSource:
    """Make a config source with its own gRPC stream to the agent."""
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
    return tls_v3.SdsSecretConfig(name=name, sds_config=config_source(source))


def common_tls(source: SecretSource, *, alpn: Sequence[str] = ()) -> tls_v3.CommonTlsContext:
    """Make a TLS context: certificate and validation context by SDS, TLS 1.3."""
    return tls_v3.CommonTlsContext(
        tls_params=tls_v3.TlsParameters(
            tls_minimum_protocol_version=tls_v3.TlsParametersTlsProtocol.TLSv1_3,
            tls_maximum_protocol_version=tls_v3.TlsParametersTlsProtocol.TLSv1_3,
        ),
        alpn_protocols=list(alpn),
        tls_certificate_sds_secret_configs=[_secret(source.certificate, source)],
        validation_context_sds_secret_config=_secret(source.validation, source),
    )
