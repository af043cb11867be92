"""A second decoder of what comes from a socket, which shares no code with the first.

``envoy-data-plane`` (betterproto) reads every response as it came, beside the official runtime:
what we encode by hand must mean the same to both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from envoy.extensions.transport_sockets.tls.v3 import secret_pb2
from envoy.service.discovery.v3 import discovery_pb2
from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls_v3
from envoy_data_plane.envoy.service.discovery import v3 as discovery_v3

if TYPE_CHECKING:
    from collections.abc import Callable

_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
_M = TypeVar("_M")


def decoded_twice(kind: type[_M]) -> Callable[[bytes], _M]:
    """A deserializer of this kind of response that fails where the two decoders differ."""
    official: Any = kind

    def decode(raw: bytes) -> _M:
        message: _M = official.FromString(raw)
        if isinstance(message, discovery_pb2.DeltaDiscoveryResponse):
            _compare_delta(message, discovery_v3.DeltaDiscoveryResponse.parse(raw))
        elif isinstance(message, discovery_pb2.DiscoveryResponse):
            _compare_sotw(message, discovery_v3.DiscoveryResponse.parse(raw))
        return message

    return decode


def _compare_sotw(one: Any, other: Any) -> None:
    assert (one.version_info, one.nonce, one.type_url) == (
        other.version_info,
        other.nonce,
        other.type_url,
    )
    assert len(one.resources) == len(other.resources)
    for first, second in zip(one.resources, other.resources, strict=True):
        _compare_any(first, second)


def _compare_delta(one: Any, other: Any) -> None:
    assert (one.system_version_info, one.nonce, one.type_url) == (
        other.system_version_info,
        other.nonce,
        other.type_url,
    )
    assert list(one.removed_resources) == list(other.removed_resources)
    assert len(one.resources) == len(other.resources)
    for first, second in zip(one.resources, other.resources, strict=True):
        assert (first.name, first.version) == (second.name, second.version)
        assert first.HasField("resource") is (second.resource is not None)
        assert (first.ttl.ToTimedelta() if first.HasField("ttl") else None) == second.ttl
        if second.resource is not None:
            _compare_any(first.resource, second.resource)


def _compare_any(one: Any, other: Any) -> None:
    assert one.type_url == other.type_url
    assert one.value == other.value
    if one.type_url == _SECRET:
        _compare_secret(secret_pb2.Secret.FromString(one.value), tls_v3.Secret.parse(other.value))


def _compare_secret(one: Any, other: Any) -> None:
    assert one.name == other.name
    kind = one.WhichOneof("type")
    if kind == "tls_certificate":
        first, second = one.tls_certificate, other.tls_certificate
        assert first.certificate_chain.inline_bytes == second.certificate_chain.inline_bytes
        assert first.private_key.inline_bytes == second.private_key.inline_bytes
    elif kind == "validation_context":
        first, second = one.validation_context, other.validation_context
        if first.HasField("trusted_ca"):
            assert first.trusted_ca.inline_bytes == second.trusted_ca.inline_bytes
        matchers = first.match_typed_subject_alt_names
        assert len(matchers) == len(second.match_typed_subject_alt_names)
    elif kind == "session_ticket_keys":
        keys = [key.inline_bytes for key in one.session_ticket_keys.keys]
        assert keys == [key.inline_bytes for key in other.session_ticket_keys.keys]
    elif kind == "generic_secret":
        first, second = one.generic_secret.secret, other.generic_secret.secret
        assert first.inline_bytes == second.inline_bytes
