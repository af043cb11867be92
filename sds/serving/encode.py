"""Encodes secrets and responses.

Owns the encoding of ``envoy.extensions.transport_sockets.tls.v3.Secret`` and of both discovery
responses. Invariants: a resource is encoded once for its name and version; every stream gets the
same bytes with its own nonce behind them (protobuf fields may come in any order), so a push
allocates one bytes object and no protobuf message. A resource may contain a private key, so only
the view of a caller keeps resources, and only while their version is current.
"""

from __future__ import annotations

import base64
from datetime import timedelta
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from envoy.extensions.transport_sockets.tls.v3 import (
    secret_pb2,
    tls_spiffe_validator_config_pb2,
)

from sds.serving.wire import length_delimited
from sds.varint import write_varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from envoy.type.matcher.v3 import regex_pb2

    from sds.secrets.store import TrustBundle
    from sds.serving.peer_policy import SanMatcher
    from sds.serving.subscription import Receipt

SECRET_TYPE: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # a type
_RESOURCE_TYPE: Final = "type.googleapis.com/envoy.service.discovery.v3.Resource"
_SPIFFE_VALIDATOR: Final = "envoy.tls.cert_validator.spiffe"
_SHORT_REGEX: Final = 80
NOBODY: Final = "urn:attested-sds:nobody"
"""The matcher of a context that admits nobody: no SVID has this URI. (No matcher admits all.)"""


class Resource:
    """One resource under one name at one version, with its bytes.

    Args:
        receipt: the name, version and parts.
        secret: the encoded message, including a private key if it has one.
        type_url: the type of the message.
        ttl: how long the client may use it without a heartbeat; None means forever.
    """

    __slots__ = ("_delta", "_sotw", "receipt", "secret", "ttl", "type_url")

    def __init__(
        self,
        receipt: Receipt,
        secret: bytes,
        *,
        type_url: str = SECRET_TYPE,
        ttl: timedelta | None = None,
    ) -> None:
        self.receipt = receipt
        self.type_url = type_url
        self.ttl = ttl
        self.secret = secret
        self._sotw: bytes | None = None
        self._delta: bytes | None = None

    def __repr__(self) -> str:
        """Return a text without the content."""
        return f"Resource({self.receipt.name!r}, {self.receipt.version!r})"

    @property
    def size(self) -> int:
        """Return the length of the encoded message in bytes."""
        return len(self.secret)

    @property
    def any(self) -> bytes:
        """Encode the message as ``google.protobuf.Any``.

        With a TTL it is wrapped in an ``envoy.service.discovery.v3.Resource`` (xDS, "TTL").
        """
        message = _any(self.type_url, self.secret)
        if self.ttl is None:
            return message
        receipt = self.receipt
        wrapped = _wrapped(receipt.name, receipt.version, self.ttl, resource=message)
        return _any(_RESOURCE_TYPE, wrapped)

    @property
    def sotw(self) -> bytes:
        """Encode a whole DiscoveryResponse with this resource, except for the nonce."""
        if self._sotw is None:
            self._sotw = (
                length_delimited(1, self.receipt.version.encode())
                + length_delimited(2, self.any)
                + length_delimited(4, self.type_url.encode())
            )
        return self._sotw

    @property
    def delta(self) -> bytes:
        """Encode one element of DeltaDiscoveryResponse.resources."""
        if self._delta is None:
            receipt = self.receipt
            self._delta = length_delimited(
                2,
                _wrapped(
                    receipt.name,
                    receipt.version,
                    self.ttl,
                    resource=_any(self.type_url, self.secret),
                ),
            )
        return self._delta


def _nonce(nonce: str) -> bytes:
    """Encode the field ``nonce`` (number 5 in both responses); ours have less than 128 bytes."""
    encoded = nonce.encode()
    return bytes((5 << 3 | 2, len(encoded))) + encoded


def _any(type_url: str, value: bytes) -> bytes:
    return length_delimited(1, type_url.encode()) + length_delimited(2, value)


def _wrapped(
    name: str, version: str, ttl: timedelta | None, *, resource: bytes | None = None
) -> bytes:
    """Encode an ``envoy.service.discovery.v3.Resource``; without ``resource`` it is a heartbeat."""
    encoded = length_delimited(1, version.encode())
    if resource is not None:
        encoded += length_delimited(2, resource)
    encoded += length_delimited(3, name.encode())
    if ttl is not None:
        encoded += length_delimited(6, _duration(ttl))
    return encoded


def _duration(span: timedelta) -> bytes:
    """Encode a ``google.protobuf.Duration`` of at least one millisecond."""
    milliseconds = max(1, span // timedelta(milliseconds=1))
    seconds, rest = divmod(milliseconds, 1000)
    encoded = b"\x08" + write_varint(seconds) if seconds else b""
    return encoded + (b"\x10" + write_varint(rest * 1_000_000) if rest else b"")


def delta_heartbeat(
    resources: Iterable[Resource], *, type_url: str, version: str, nonce: str
) -> bytes:
    """Encode a DeltaDiscoveryResponse without content, which extends these resources' lives."""
    return b"".join(
        (
            length_delimited(1, version.encode()),
            *(
                length_delimited(2, _wrapped(one.receipt.name, one.receipt.version, one.ttl))
                for one in resources
            ),
            length_delimited(4, type_url.encode()),
            length_delimited(5, nonce.encode()),
        )
    )


def sotw_response(
    resources: Sequence[Resource], *, type_url: str, version: str, nonce: str
) -> bytes:
    """Encode a DiscoveryResponse; ``version`` counts if there is not exactly one resource."""
    tail = _nonce(nonce) if nonce else b""
    if len(resources) == 1:
        return resources[0].sotw + tail
    return b"".join(
        (
            length_delimited(1, version.encode()),
            *(length_delimited(2, resource.any) for resource in resources),
            length_delimited(4, type_url.encode()),
            tail,
        )
    )


def delta_response(
    resources: Sequence[Resource],
    removed: Iterable[str],
    *,
    type_url: str,
    version: str,
    nonce: str,
) -> bytes:
    """Encode a DeltaDiscoveryResponse; ``version`` is its ``system_version_info`` (for people)."""
    return b"".join(
        (
            length_delimited(1, version.encode()),
            *(resource.delta for resource in resources),
            length_delimited(4, type_url.encode()),
            *(length_delimited(6, name.encode()) for name in removed),
            _nonce(nonce),
        )
    )


# --- secrets ------------------------------------------------------------------------------------


def tls_certificate(name: str, chain: Iterable[bytes], private_key: bytes) -> bytes:
    """Encode a Secret with a TlsCertificate from a DER chain, leaf first, and a PKCS#8 PEM key."""
    secret = secret_pb2.Secret(name=name)
    secret.tls_certificate.certificate_chain.inline_bytes = pem(chain)
    secret.tls_certificate.private_key.inline_bytes = private_key
    encoded: bytes = secret.SerializeToString()
    secret.Clear()
    return encoded


def trusted_ca(
    name: str, bundle: TrustBundle, matchers: Iterable[SanMatcher] | None = None
) -> bytes:
    """Encode a Secret with a plain validation context.

    Args:
        name: the resource name.
        bundle: the roots.
        matchers: at least one of these must match a SAN of the peer; an empty sequence admits
            nobody; None leaves names unchecked.
    """
    secret = secret_pb2.Secret(name=name)
    secret.validation_context.trusted_ca.inline_bytes = pem(bundle.roots)
    _add_matchers(secret, matchers)
    encoded: bytes = secret.SerializeToString()
    return encoded


def spiffe_validator(
    name: str, bundles: Iterable[TrustBundle], matchers: Iterable[SanMatcher] | None = None
) -> bytes:
    """Encode a Secret that trusts each CA only for the SPIFFE IDs of its own trust domain.

    Envoy: ``envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig``. ``matchers`` as
    in :func:`trusted_ca`.
    """
    secret = secret_pb2.Secret(name=name)
    config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
    for bundle in sorted(bundles, key=attrgetter("trust_domain")):
        domain = config.trust_domains.add(name=bundle.trust_domain)
        domain.trust_bundle.inline_bytes = pem(bundle.roots)
    custom = secret.validation_context.custom_validator_config
    custom.name = _SPIFFE_VALIDATOR
    custom.typed_config.Pack(config)
    _add_matchers(secret, matchers)
    encoded: bytes = secret.SerializeToString(deterministic=True)
    return encoded


def session_ticket_keys(name: str, keys: Iterable[bytes]) -> bytes:
    """Encode a Secret with TlsSessionTicketKeys of 80 bytes; Envoy encrypts with the first."""
    secret = secret_pb2.Secret(name=name)
    for key in keys:
        secret.session_ticket_keys.keys.add(inline_bytes=key)
    encoded: bytes = secret.SerializeToString()
    secret.Clear()
    return encoded


def generic_secret(name: str, value: bytes) -> bytes:
    """Encode a Secret with a GenericSecret."""
    secret = secret_pb2.Secret(name=name)
    secret.generic_secret.secret.inline_bytes = value
    encoded: bytes = secret.SerializeToString()
    secret.Clear()
    return encoded


def pem(certificates: Iterable[bytes]) -> bytes:
    """Encode DER certificates as PEM (RFC 7468), one after the other."""
    out = []
    for der in certificates:
        text = base64.b64encode(der)
        lines = [text[at : at + 64] for at in range(0, len(text), 64)]
        out += [b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""]
    return b"\n".join(out)


def set_regex(matcher: regex_pb2.RegexMatcher, regex: str) -> None:
    """Write a regular expression so that Envoy accepts it whatever its length.

    Envoy 1.36 to 1.40 refuse expressions that compile to more than 100 instructions, about one for
    each character, unless the matcher says how many it may have. That field is deprecated (Envoy
    logs a warning), so short expressions, which are most, do not use it.
    """
    matcher.regex = regex
    if len(regex) > _SHORT_REGEX:
        matcher.google_re2.max_program_size.value = 16 * len(regex)


def _add_matchers(secret: secret_pb2.Secret, matchers: Iterable[SanMatcher] | None) -> None:
    if matchers is None:
        return
    typed = secret.validation_context.match_typed_subject_alt_names
    for matcher in matchers:
        added = typed.add(san_type="URI")
        if matcher.kind == "regex":
            set_regex(added.matcher.safe_regex, matcher.value)
        else:
            added.matcher.exact = matcher.value
    if not typed:
        typed.add(san_type="URI").matcher.exact = NOBODY
