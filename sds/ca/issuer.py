"""Makes the certificate of an item from a signer, a permit and a key, without I/O.

Owns the profile of our certificates: X.509-SVID for workloads (sections 2 to 4), RFC 5280 for
authorities. Invariants: a certificate never outlives any certificate above it and never starts
before its issuer; its serial has 158 random bits; its SPIFFE ID is its only URI SAN; only the
public key comes from the CSR.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sds.errors import RefusedError
from sds.identity import SpiffeId, TrustDomain
from sds.pki import certificate_der, load_certificate, signature_hash, spki_sha256
from sds.pki.constraints import extension

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from cryptography.hazmat.primitives import hashes

    from sds.pki import PrivateKey, PublicKey
    from sds.policy.nodes import Permit, RequestedCertificate

_SERIAL_BITS: Final = 159
"""The length of a serial: at most 20 octets and positive (RFC 5280, section 4.1.2.2)."""
_NO_NAME: Final = x509.Name([])
_ValueT = TypeVar("_ValueT", bound=x509.ExtensionType)


def _usage(**uses: bool) -> x509.KeyUsage:
    names = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement "
        "key_cert_sign crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{name: uses.get(name, False) for name in names.split()})


def _extension(value: _ValueT, *, critical: bool) -> x509.Extension[_ValueT]:
    return x509.Extension(value.oid, critical, value)


_LEAF_CONSTRAINTS: Final = _extension(
    x509.BasicConstraints(ca=False, path_length=None), critical=True
)
_LEAF_USAGE: Final = _extension(_usage(digital_signature=True), critical=True)
_LEAF_USAGE_RSA: Final = _extension(
    _usage(digital_signature=True, key_encipherment=True), critical=True
)
_LEAF_EXTENDED_USAGE: Final = _extension(
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
    critical=False,
)
_CA_USAGE: Final = _usage(key_cert_sign=True, crl_sign=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """A key that may sign, and its certificates.

    Attributes:
        trust_domain: the trust domain whose certificates it signs.
        key: the issuing key.
        certificate: the issuing certificate.
        chain: the chain in DER: the issuing certificate first, then intermediates, without the root
            (except that a self-signed issuing certificate is the root).
        root: the root in DER.
        not_before: the latest not-before of chain and root.
        not_after: when it stops signing, and the end of what it signs: the earliest not-after of
            chain and root, and no later than it was asked for.
        path_length: how many levels of CAs may be below it; None for any number.
        key_id: the SHA-256 of the issuing key's SubjectPublicKeyInfo.
        identifier: the authority key identifier of the certificates that it signs.
        algorithm: the hash that it signs with; None for Ed25519.
    """

    trust_domain: TrustDomain
    key: PrivateKey = field(repr=False)
    certificate: x509.Certificate = field(repr=False)
    chain: tuple[bytes, ...] = field(repr=False)
    root: bytes = field(repr=False)
    not_before: datetime
    not_after: datetime
    path_length: int | None
    key_id: bytes
    identifier: x509.AuthorityKeyIdentifier = field(repr=False)
    algorithm: hashes.SHA256 | hashes.SHA384 | None

    @property
    def presented(self) -> tuple[bytes, ...]:
        """Return what follows a leaf on the wire: the chain without a root."""
        return tuple(der for der in self.chain if der != self.root)


def make_signer(
    *, key: PrivateKey, chain: tuple[bytes, ...], root: bytes, trust_domain: TrustDomain
) -> Signer:
    """Join a key with its verified chain (``sds.pki.verify_authority_chain``, or self-signed)."""
    path = chain if chain[-1] == root else (*chain, root)
    certificates = [load_certificate(der) for der in path]
    issuing = certificates[0]
    lengths = []
    for depth, certificate in enumerate(certificates):
        constraints = extension(certificate, x509.BasicConstraints)
        if constraints is not None and constraints.path_length is not None:
            lengths.append(constraints.path_length - depth)
    return Signer(
        trust_domain=trust_domain,
        key=key,
        certificate=issuing,
        chain=chain,
        root=root,
        not_before=max(certificate.not_valid_before_utc for certificate in certificates),
        not_after=min(certificate.not_valid_after_utc for certificate in certificates),
        path_length=min(lengths, default=None),
        key_id=spki_sha256(key.public_key()),
        algorithm=signature_hash(key),
        identifier=_identifier(issuing, key),
    )


def _identifier(issuing: x509.Certificate, key: PrivateKey) -> x509.AuthorityKeyIdentifier:
    """Return the issuer's own key identifier, if it has one (RFC 5280, section 4.2.1.1).

    Section 4.2.1.2 requires one in every CA certificate, but some tools write none. Then it is made
    from the key by that section's method 1.
    """
    own = extension(issuing, x509.SubjectKeyIdentifier)
    if own is None:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def self_sign(
    *,
    key: PrivateKey,
    trust_domain: TrustDomain,
    lifetime: timedelta,
    path_length: int | None,
    now: datetime,
    backdate: timedelta,
) -> Signer:
    """Make a root: a new name for every key, so that no two roots share a subject."""
    public_key = key.public_key()
    name = authority_name(public_key)
    start = (now - backdate).replace(microsecond=0)
    builder = _authority_builder(
        subject=name, trust_domain=trust_domain, public_key=public_key, path_length=path_length
    )
    certificate = (
        builder.issuer_name(name)
        .not_valid_before(start)
        .not_valid_after((now + lifetime).replace(microsecond=0))
        .sign(key, signature_hash(key))
    )
    der = certificate_der(certificate)
    return make_signer(key=key, chain=(der,), root=der, trust_domain=trust_domain)


def issue(
    signer: Signer,
    *,
    wanted: RequestedCertificate,
    permit: Permit,
    public_key: PublicKey,
    now: datetime,
    backdate: timedelta,
) -> x509.Certificate:
    """Sign the certificate that ``permit`` allows of ``wanted``.

    Args:
        signer: the signer.
        wanted: the names.
        permit: lifetime and, for an authority's certificate, path length.
        public_key: the CSR's key.
        now: the time from which the lifetime counts.
        backdate: how long before ``now`` it becomes valid, for clocks that are behind.

    Raises:
        RefusedError: ``authority_not_ready``: the signer itself expires within a second.
        RefusedError: ``signing_not_allowed``: the signer's path length allows no authority below
            it.
    """
    not_before, not_after = validity(signer, lifetime=permit.lifetime, now=now, backdate=backdate)
    if permit.path_length is not None:
        builder = _authority_builder(
            subject=authority_name(public_key),
            trust_domain=wanted.spiffe_id.trust_domain,
            public_key=public_key,
            path_length=path_length_below(signer, permit.path_length),
        )
    else:
        builder = _leaf_builder(wanted, public_key)
    return (
        builder.issuer_name(signer.certificate.subject)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(signer.identifier, critical=False)
        .sign(signer.key, signer.algorithm)
    )


def validity(
    signer: Signer, *, lifetime: timedelta, now: datetime, backdate: timedelta
) -> tuple[datetime, datetime]:
    """Return not-before and not-after within the signer's, in whole seconds (RFC 5280, 4.1.2.5).

    Raises:
        RefusedError: ``authority_not_ready``: no time is left before the signer expires.
    """
    not_before = max(now - backdate, signer.certificate.not_valid_before_utc)
    not_after = min(now + lifetime, signer.not_after).replace(microsecond=0)
    if not_after <= now:
        raise RefusedError(
            f"the authority's own certificate ends at {signer.not_after.isoformat()}",
            reason="authority_not_ready",
        )
    return not_before.replace(microsecond=0), not_after


def path_length_below(signer: Signer, wanted: int) -> int:
    """Return the path length of an authority right below ``signer`` (RFC 5280, section 4.2.1.9).

    Raises:
        RefusedError: ``signing_not_allowed``: no CA may be below this one.
    """
    if signer.path_length is None:
        return wanted
    if signer.path_length < 1:
        raise RefusedError(
            "the path length of this authority allows no authority below it",
            reason="signing_not_allowed",
        )
    return min(wanted, signer.path_length - 1)


def authority_name(key: PublicKey) -> x509.Name:
    """Return the subject of an authority; it names the key, so that equal names mean equal keys."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "attested-sds"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"CA {spki_sha256(key)[:12].hex()}"),
        ]
    )


def authority_request(key: PrivateKey, trust_domain: TrustDomain) -> x509.CertificateSigningRequest:
    """Make the request that an operator signs, with everything that the certificate needs."""
    name = x509.UniformResourceIdentifier(str(SpiffeId(trust_domain)))
    return (
        x509.CertificateSigningRequestBuilder(authority_name(key.public_key()))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(key, signature_hash(key))
    )


def _builder(
    subject: x509.Name, public_key: PublicKey, *extensions: x509.Extension[x509.ExtensionType]
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        subject_name=subject,
        public_key=public_key,
        # The top bit is set, so that every serial has the same length.
        serial_number=secrets.randbits(_SERIAL_BITS) | 1 << (_SERIAL_BITS - 1),
        # In one step: add_extension copies the whole builder for each of them.
        extensions=list(extensions),
    )


def _key_identifier(key: PublicKey) -> x509.Extension[x509.SubjectKeyIdentifier]:
    return _extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _leaf_builder(wanted: RequestedCertificate, public_key: PublicKey) -> x509.CertificateBuilder:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(wanted.spiffe_id))]
    names.extend(map(x509.DNSName, wanted.dns_names))
    usage = _LEAF_USAGE_RSA if isinstance(public_key, rsa.RSAPublicKey) else _LEAF_USAGE
    return _builder(
        _NO_NAME,
        public_key,
        _LEAF_CONSTRAINTS,
        usage,
        _LEAF_EXTENDED_USAGE,
        _key_identifier(public_key),
        # Critical because the subject is empty (RFC 5280, section 4.1.2.6).
        _extension(x509.SubjectAlternativeName(names), critical=True),
    )


def _authority_builder(
    *,
    subject: x509.Name,
    trust_domain: TrustDomain,
    public_key: PublicKey,
    path_length: int | None,
) -> x509.CertificateBuilder:
    # X.509-SVID, section 3.2: a signing certificate's SPIFFE ID is its trust domain's.
    name = x509.UniformResourceIdentifier(str(SpiffeId(trust_domain)))
    return _builder(
        subject,
        public_key,
        _extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True),
        _extension(_CA_USAGE, critical=True),
        _key_identifier(public_key),
        _extension(x509.SubjectAlternativeName([name]), critical=False),
    )
