"""Certificates for tests, each field by choice: made with the library, not with our issuer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sds.identity import KeyType
from sds.pki import PrivateKey, PublicKey, generate_private_key, signature_hash

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NO_NAME = x509.Name([])
NO_CA = x509.BasicConstraints(ca=False, path_length=None)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def key_usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


def common_name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a certificate shall be."""

    subject: x509.Name = NO_NAME
    not_before: datetime = NOW - timedelta(hours=1)
    not_after: datetime = NOW + timedelta(hours=1)
    constraints: x509.BasicConstraints | None = NO_CA
    usage: x509.KeyUsage | None = dataclasses.field(
        default_factory=lambda: key_usage("digital_signature")
    )
    extended: tuple[x509.ObjectIdentifier, ...] = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    names: tuple[x509.GeneralName, ...] = ()
    more: tuple[tuple[x509.ExtensionType, bool], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Signer:
    """A certificate with its key."""

    key: PrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    def issue(self, wish: Wish, key: PrivateKey | None = None) -> Signer:
        return _make(wish, key or generate_private_key(KeyType.EC_P256), self)

    def sign(self, wish: Wish, public_key: PublicKey) -> bytes:
        """A certificate in DER for a key that somebody else holds."""
        return _sign(wish, public_key, self.certificate.subject, self.key).public_bytes(
            Encoding.DER
        )


def ca_wish(name: str, *, path_length: int | None = None) -> Wish:
    return Wish(
        subject=common_name(name),
        constraints=x509.BasicConstraints(ca=True, path_length=path_length),
        usage=key_usage("key_cert_sign", "crl_sign"),
        extended=(),
    )


def self_signed(wish: Wish, key: PrivateKey | None = None) -> Signer:
    return _make(wish, key or generate_private_key(KeyType.EC_P256), None)


def _make(wish: Wish, key: PrivateKey, signer: Signer | None) -> Signer:
    issuer = signer.certificate.subject if signer else wish.subject
    signing_key = signer.key if signer else key
    return Signer(key=key, certificate=_sign(wish, key.public_key(), issuer, signing_key))


def _sign(
    wish: Wish, public_key: PublicKey, issuer: x509.Name, signing_key: PrivateKey
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(wish.subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(wish.not_before)
        .not_valid_after(wish.not_after)
    )
    if wish.constraints is not None:
        builder = builder.add_extension(wish.constraints, critical=True)
    if wish.usage is not None:
        builder = builder.add_extension(wish.usage, critical=True)
    if wish.extended:
        builder = builder.add_extension(x509.ExtendedKeyUsage(wish.extended), critical=False)
    if wish.names:
        builder = builder.add_extension(x509.SubjectAlternativeName(wish.names), critical=True)
    for more, critical in wish.more:
        builder = builder.add_extension(more, critical=critical)
    return builder.sign(signing_key, signature_hash(signing_key))
