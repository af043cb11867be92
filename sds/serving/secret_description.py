"""Describes an encoded Secret for ``sds get`` and ``sds status``.

Owns the shape of the JSON. Invariant: a description contains nothing secret; only
:func:`private_key` returns a private key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from envoy.config.core.v3 import extension_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from envoy.extensions.transport_sockets.tls.v3 import (
    secret_pb2,
    tls_spiffe_validator_config_pb2,
)

from sds.errors import MalformedRequestError

if TYPE_CHECKING:
    from datetime import datetime

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The description of one secret.

    Attributes:
        name: the resource name.
        kind: ``tls_certificate``, ``validation_context``, ``session_ticket_keys``,
            ``generic_secret``, ``http_authorization`` or ``tcp_authorization``.
        uris: URI SANs of the leaf.
        dns_names: DNS SANs of the leaf.
        serial: the leaf's serial number, lower-case hex.
        not_before: the beginning of the leaf's validity.
        not_after: the end of the leaf, or of the root that ends first.
        certificates: chain or roots, PEM.
        trust_domains: for a SPIFFE validator: name -> number of roots.
        matchers: SAN matchers in words.
        keys: number of session ticket keys.
        allows: for an authorization: what its rules allow, in words; empty denies everything.
        counted: for an authorization: the same for its shadow rules.
    """

    name: str
    kind: str
    uris: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    serial: str | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    certificates: tuple[str, ...] = field(default=(), repr=False)
    trust_domains: dict[str, int] = field(default_factory=dict)
    matchers: tuple[str, ...] = ()
    keys: int | None = None
    allows: tuple[str, ...] | None = None
    counted: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without those that are absent."""
        raw: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "uris": list(self.uris),
            "dns_names": list(self.dns_names),
            "serial": self.serial,
            "not_before": self.not_before.isoformat() if self.not_before else None,
            "not_after": self.not_after.isoformat() if self.not_after else None,
            "trust_domains": self.trust_domains,
            "matchers": list(self.matchers),
            "keys": self.keys,
            "allows": None if self.allows is None else list(self.allows),
            "counted": None if self.counted is None else list(self.counted),
            "certificates": list(self.certificates),
        }
        shown = ("allows", "counted")  # empty says that everything is denied
        return {
            name: value
            for name, value in raw.items()
            if value not in (None, [], {}) or (name in shown and value is not None)
        }


def describe(encoded: bytes) -> Description:
    """Describe an encoded Secret.

    Raises:
        MalformedRequestError: a certificate in it is not one.
    """
    secret = secret_pb2.Secret.FromString(encoded)
    kind = secret.WhichOneof("type") or "empty"
    if kind == "tls_certificate":
        return _certificate(secret)
    if kind == "validation_context":
        return _context(secret)
    if kind == "session_ticket_keys":
        return Description(name=secret.name, kind=kind, keys=len(secret.session_ticket_keys.keys))
    return Description(name=secret.name, kind=kind)


def describe_extension(encoded: bytes) -> Description:
    """Describe an encoded TypedExtensionConfig: an authorization for HTTP or TCP."""
    extension = extension_pb2.TypedExtensionConfig.FromString(encoded)
    http, tcp = http_rbac_pb2.RBAC(), network_rbac_pb2.RBAC()
    config: Any = tcp if extension.typed_config.Unpack(tcp) else http
    if config is http:
        extension.typed_config.Unpack(http)
    return Description(
        name=extension.name,
        kind="http_authorization" if config is http else "tcp_authorization",
        allows=_rules(config.rules),
        counted=_rules(config.shadow_rules) if config.HasField("shadow_rules") else None,
    )


def _rules(rules: Any) -> tuple[str, ...]:
    return tuple(
        f"{name} from " + ", ".join(map(_principal, policy.principals))
        for name, policy in sorted(rules.policies.items())
    )


def _principal(principal: Any) -> str:
    name = principal.authenticated.principal_name
    return str(name.exact or f"regex {name.safe_regex.regex}")


def private_key(encoded: bytes) -> str | None:
    """Return the private key of a TLS certificate as PEM; None if the Secret has none."""
    secret = secret_pb2.Secret.FromString(encoded)
    if not secret.HasField("tls_certificate"):
        return None
    source = secret.tls_certificate.private_key
    return source.inline_string or bytes(source.inline_bytes).decode() or None


def remaining(not_after: datetime, now: datetime) -> str:
    """Return the time to expiry in its two largest units: ``in 2 h 5 min``, ``3 s ago``."""
    seconds = int((not_after - now).total_seconds())
    left = abs(seconds)
    words: list[str] = []
    for size, unit in _UNITS:
        if left >= size or (size == 1 and not words):
            words.append(f"{left // size} {unit}")
            left %= size
        elif words:
            break
    text = " ".join(words[:2])
    return f"in {text}" if seconds >= 0 else f"{text} ago"


def _certificate(secret: Any) -> Description:
    source = secret.tls_certificate.certificate_chain
    chain = _parse(secret.name, bytes(source.inline_bytes) or source.inline_string.encode())
    leaf = chain[0]
    uris: list[str] = []
    dns_names: list[str] = []
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        dns_names = names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        pass  # a leaf from another issuer may have no name at all
    return Description(
        name=secret.name,
        kind="tls_certificate",
        uris=tuple(uris),
        dns_names=tuple(dns_names),
        serial=f"{leaf.serial_number:x}",
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        certificates=_pem(chain),
    )


def _context(secret: Any) -> Description:
    context = secret.validation_context
    trust_domains: dict[str, int] = {}
    if context.HasField("custom_validator_config"):
        config = tls_spiffe_validator_config_pb2.SPIFFECertValidatorConfig()
        context.custom_validator_config.typed_config.Unpack(config)
        roots = []
        for domain in config.trust_domains:
            found = _parse(secret.name, bytes(domain.trust_bundle.inline_bytes))
            trust_domains[domain.name] = len(found)
            roots += found
    else:
        roots = _parse(secret.name, bytes(context.trusted_ca.inline_bytes))
    return Description(
        name=secret.name,
        kind="validation_context",
        not_after=min(root.not_valid_after_utc for root in roots),
        certificates=_pem(roots),
        trust_domains=trust_domains,
        matchers=tuple(_matcher(matcher) for matcher in context.match_typed_subject_alt_names),
    )


def _matcher(typed: Any) -> str:
    san = type(typed).SanType.Name(typed.san_type).lower()
    kind = typed.matcher.WhichOneof("match_pattern")
    value = getattr(typed.matcher, kind)
    return f"{san} {kind} {value.regex if kind == 'safe_regex' else value}"


def _parse(name: str, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise MalformedRequestError(f"secret {name!r} has no certificates: {error}") from None


def _pem(certificates: list[x509.Certificate]) -> tuple[str, ...]:

    return tuple(found.public_bytes(Encoding.PEM).decode() for found in certificates)
