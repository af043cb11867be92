"""The authority's TLS identity.

Owns the key that answers on the authority's port. Invariants: the key is made at the start and kept
in memory, unless an operator names files; in both cases, the SHA-256 of its SubjectPublicKeyInfo is
in the authority's evidence.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sds.authority.channel import TLS_SERVER_NAME
from sds.errors import CertificateError, ConfigurationError, KeyTypeError
from sds.files import read_file
from sds.identity import KeyType
from sds.pki import (
    certificate_der,
    certificate_pem,
    certificates_from_pem,
    generate_private_key,
    load_certificate,
    load_private_key,
    private_key_pem,
    signature_hash,
    spki_sha256,
    supported_key,
)
from sds.transport.tls_settings import ServerTlsSettings, server_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MAX_BYTES: Final = 1024 * 1024
_VALID: Final = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""The lifetime has no meaning, because agents pin the key again at every connection. What the clock
says when the certificate is made must have none either (RFC 5280, section 4.1.2.5: no end)."""
_ISO: Final = "%Y-%m-%dT%H:%M:%SZ"


class ServerTls(Protocol):
    """The TLS identity that new connections to the authority's port get.

    Attributes:
        key_digest: the SHA-256 of the leaf's SubjectPublicKeyInfo.
        not_after: when the leaf expires.
    """

    @property
    def key_digest(self) -> bytes: ...

    @property
    def not_after(self) -> datetime: ...

    def settings(self) -> ServerTlsSettings:
        """Return the settings of the server side for a new connection."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsIdentity:
    """A certificate and its key.

    Attributes:
        certificate_pem: the chain, leaf first.
        key_pem: the key, PKCS#8.
        key_digest: the SHA-256 of the leaf's SubjectPublicKeyInfo.
        not_after: when the leaf expires.
    """

    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    key_digest: bytes
    not_after: datetime
    _made: list[ServerTlsSettings] = field(
        default_factory=list, repr=False, compare=False, init=False
    )
    """The settings, once they were asked for."""

    def settings(self) -> ServerTlsSettings:
        """Return the settings of the server side; agents prove themselves by evidence.

        Raises:
            ConfigurationError: OpenSSL does not accept the certificate or the key.
        """
        if not self._made:
            self._made.append(
                server_settings(certificate_pem=self.certificate_pem, key_pem=self.key_pem)
            )
        return self._made[0]


def self_signed_tls(*, server_names: Sequence[str] = ()) -> TlsIdentity:
    """Make a fresh P-256 key with a self-signed certificate that is valid at any time.

    Args:
        server_names: DNS names beside the fixed one, for agents that have this certificate as a
            configured root.
    """
    key = generate_private_key(KeyType.EC_P256)
    digest = spki_sha256(key.public_key())
    # Each has its own name: TLS finds roots by name, and a file may have those of many replicas.
    common_name = f"attested-sds authority TLS {digest[:8].hex()}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(secrets.randbits(158) | 1 << 158)
        .not_valid_before(_VALID[0])
        .not_valid_after(_VALID[1])
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName(text) for text in (TLS_SERVER_NAME, *server_names)]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, signature_hash(key))
    )
    return TlsIdentity(
        certificate_pem=certificate_pem([certificate_der(certificate)]),
        key_pem=private_key_pem(key),
        key_digest=digest,
        not_after=certificate.not_valid_after_utc,
    )


def _read(path: Path, field: str) -> bytes:
    try:
        return read_file(path, max_bytes=_MAX_BYTES)
    except OSError as error:
        raise ConfigurationError(
            f"{field}: {path} cannot be read: {error.strerror}",
            advice="check the path and its permissions",
        ) from error


def tls_from_files(certificate: Path, key: Path, *, now: datetime) -> TlsIdentity:
    """Read the identity that an operator provides.

    Raises:
        ConfigurationError: a file cannot be read or parsed, the two do not belong together, or the
            certificate is not valid now.
    """
    pem_chain, pem = (
        _read(path, f"tls.{name}") for name, path in (("certificate", certificate), ("key", key))
    )
    try:
        chain = certificates_from_pem(pem_chain)
        private = load_private_key(pem)
        leaf = load_certificate(chain[0])
        public = supported_key(leaf)
    except CertificateError as error:
        raise ConfigurationError(f"tls.certificate: {certificate}: {error}") from error
    except KeyTypeError as error:
        raise ConfigurationError(f"tls.key: {key}: {error}") from error
    if private.public_key() != public:
        raise ConfigurationError(
            f"tls.key: {key} is not the key of {certificate}",
            advice="give the key that the certificate was issued for",
        )
    if isinstance(private, ed25519.Ed25519PrivateKey):
        raise ConfigurationError(
            f"tls.key: {key} is an Ed25519 key, which no client of gRPC's TLS accepts",
            advice="use a key on P-256 or P-384, or an RSA key",
        )
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        raise ConfigurationError(
            f"tls.certificate: {certificate} is valid from {leaf.not_valid_before_utc:{_ISO}} to "
            f"{leaf.not_valid_after_utc:{_ISO}}, not now",
            advice="renew it, or leave tls.certificate and tls.key out: the evidence then vouches",
        )
    identity = TlsIdentity(
        certificate_pem=certificate_pem(chain),
        key_pem=private_key_pem(private),  # OpenSSL reads fewer forms of PEM than we do
        key_digest=spki_sha256(public),
        not_after=leaf.not_valid_after_utc,
    )
    try:
        identity.settings()
    except ConfigurationError as error:
        raise ConfigurationError(
            f"tls.certificate: {certificate}: {error.message}",
            advice="check every certificate of the chain: OpenSSL refuses weak ones",
        ) from error
    return identity
