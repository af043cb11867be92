"""Verifies an X.509-SVID chain at a given time.

Owns the checks that a certificate must pass before it is served. Invariant: only
:func:`verify_svid_chain` makes a :class:`VerifiedChain`. The checks are numbered, in the order of
RFC 5280, section 6.1 (path) and of the X.509-SVID specification (leaf).

Results that depend only on the bytes of issuers are remembered (they parse, may sign, and were
signed by the one above), because a batch has hundreds of leaves under the same few issuers. Time
and everything in the leaf are checked every time, and failures are never remembered.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import ExtendedKeyUsageOID

from sds.errors import CertificateError, IdentityError
from sds.identity import SpiffeId
from sds.pki.constraints import check_name_constraints, extension
from sds.pki.encoding import certificate_der
from sds.pki.keys import PublicKey, spki_sha256
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sds.identity import Identity

MAX_CHAIN: Final = 8
"""The most certificates of one chain: a bound on work, far above any sensible hierarchy."""
MAX_CERTIFICATE_BYTES: Final = 32 * 1024
"""The largest certificate in DER: a bound on work and memory, because a name of three bytes becomes
an object of about 100. The 100 longest DNS names that an authority may certify fit."""

_REMEMBERED: Final = 64
"""How many issuers are remembered: an authority has one or two, and some roots."""
_REMEMBERED_PATHS: Final = 8
REMEMBERED_BYTES: Final = 4 * 1024
"""The largest issuer or root that is remembered: parsed, it may take 35 times as much memory."""

_KNOWN_EXTENSIONS: Final = {
    x509.BasicConstraints.oid,
    x509.KeyUsage.oid,
    x509.ExtendedKeyUsage.oid,
    x509.SubjectAlternativeName.oid,
    x509.NameConstraints.oid,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedChain:
    """A verified chain, and the facts of its leaf.

    Attributes:
        chain: DER, leaf first, intermediates after it, no root.
        serial: the leaf's serial number.
        not_before: the leaf's, aware, UTC.
        not_after: the leaf's, aware, UTC.
        valid_from: the latest not-before of the whole path, including the root: aware, UTC.
        valid_until: the earliest not-after of that path: aware, UTC.
        key_id: SHA-256 of the leaf's SubjectPublicKeyInfo, lower-case hex.
        root: SHA-256 of the DER of the root under which it is valid, lower-case hex.
    """

    chain: tuple[bytes, ...] = field(repr=False)
    serial: int
    not_before: datetime
    not_after: datetime
    valid_from: datetime
    valid_until: datetime
    key_id: str
    root: str


def load_certificate(der: bytes, what: str = "certificate") -> x509.Certificate:
    """Parse one certificate in DER, extensions included.

    Raises:
        CertificateError: ``certificate_malformed``: it is not a certificate, or has more than
            :data:`MAX_CERTIFICATE_BYTES`; ``what`` names it in the message.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise CertificateError(
            f"the {what} has {len(der)} bytes, more than {MAX_CERTIFICATE_BYTES}",
            reason="certificate_malformed",
        )
    with reading(f"the {what} cannot be parsed", CertificateError, reason="certificate_malformed"):
        certificate = x509.load_der_x509_certificate(der)
        # The library parses these on first use: used here, they raise nothing later.
        _ = (
            certificate.subject.rfc4514_string(),
            certificate.issuer.rfc4514_string(),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.extensions,  # RFC 5280, section 4.2: refuses repeats
        )
    return certificate


_loaded_issuer: Final = functools.lru_cache(maxsize=_REMEMBERED)(load_certificate)


def load_issuer(der: bytes, what: str) -> x509.Certificate:
    """Do what :func:`load_certificate` does, for the certificate of an issuer; remember results.

    Raises:
        CertificateError: as for :func:`load_certificate`.
    """
    small = len(der) <= REMEMBERED_BYTES
    return _loaded_issuer(der, what) if small else load_certificate(der, what)


def verify_svid_chain(
    chain: Sequence[bytes],
    *,
    roots: Sequence[bytes],
    identity: Identity,
    public_key: PublicKey,
    now: datetime,
) -> VerifiedChain:
    """Check a chain that an authority returned against what was asked for.

    Args:
        chain: DER, leaf first, each certificate issued by the next; a root at the end is allowed.
        roots: DER of the trusted roots.
        identity: the names that were asked for.
        public_key: the key that we hold.
        now: the time at which the chain must be valid, aware.

    Raises:
        CertificateError: a subclass that names the first check that failed.
    """
    _check_length(chain)
    certificates = [
        load_certificate(chain[0], _position(0)),
        *(load_issuer(der, _position(i)) for i, der in enumerate(chain[1:], start=1)),
    ]
    path = _path_to_root(certificates, roots, now)
    _check_signatures(path)
    _check_validity(path, now)
    _check_issuers(tuple(path[1:]))
    _check_critical_extensions(path)
    leaf = path[0]
    _check_leaf_use(leaf)
    _check_key(leaf, public_key)
    _check_names(leaf, identity)
    check_name_constraints(path)
    return VerifiedChain(
        chain=tuple(certificate_der(certificate) for certificate in path[:-1]),
        serial=leaf.serial_number,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        valid_from=max(certificate.not_valid_before_utc for certificate in path),
        valid_until=min(certificate.not_valid_after_utc for certificate in path),
        key_id=spki_sha256(public_key).hex(),
        root=_fingerprint(path[-1]),
    )


def verify_authority_chain(
    chain: Sequence[bytes], *, roots: Sequence[bytes], public_key: PublicKey, now: datetime
) -> bytes:
    """Check the chain of an authority, its issuing certificate first, and return the root in DER.

    Does checks 1 to 6 and 8 as for a leaf, and checks that the first certificate may sign. A chain
    that is only a trusted root belongs to a self-signed authority.

    Raises:
        CertificateError: a subclass that names the first check that failed.
    """
    _check_length(chain)
    certificates = [load_issuer(der, _position(i)) for i, der in enumerate(chain)]
    if len(chain) == 1 and chain[0] in set(roots):
        path = certificates
    else:
        path = _path_to_root(certificates, roots, now)
    _check_signatures(path)
    _check_validity(path, now)
    _check_issuers(tuple(path))  # includes the first one, which will issue a leaf
    _check_critical_extensions(path)
    _check_key(path[0], public_key)
    check_name_constraints(path)
    return certificate_der(path[-1])


@functools.lru_cache(maxsize=_REMEMBERED)
def _fingerprint(root: x509.Certificate) -> str:
    """Return the SHA-256 of its DER, lower-case hex."""
    return hashlib.sha256(certificate_der(root)).hexdigest()


def _position(index: int) -> str:
    return "leaf certificate" if index == 0 else f"certificate {index} of the chain"


def _check_length(chain: Sequence[bytes]) -> None:
    """1. There is a leaf, and the chain is not absurdly long."""
    if not chain:
        raise CertificateError("the chain is empty", reason="certificate_path_length")
    if len(chain) > MAX_CHAIN:
        raise CertificateError(
            f"the chain has {len(chain)} certificates, more than {MAX_CHAIN}",
            reason="certificate_path_length",
        )


def _path_to_root(
    certificates: list[x509.Certificate], roots: Sequence[bytes], now: datetime
) -> list[x509.Certificate]:
    """2. The chain ends in a trusted root (RFC 5280, section 6.1.1 (d)).

    Returns the path, leaf first, the root last. A root that the authority put at the end of the
    chain counts only if it is one of ``roots``, byte for byte. Of several certificates of a root
    over one key, the one counts that is valid for the longest.
    """
    if certificate_der(certificates[-1]) in set(roots):
        if len(certificates) == 1:
            raise CertificateError(
                "the chain contains only a root", reason="certificate_path_length"
            )
        certificates = certificates[:-1]
    last = certificates[-1]
    named = [
        root for root in (load_issuer(der, "root") for der in roots) if root.subject == last.issuer
    ]
    if len(named) > 1:  # a CA that kept its name over a new key, or its key over a new time
        named = [root for root in named if _is_issued_by(last, root)] or named[:1]
        named.sort(key=lambda root: (_is_valid(root, now), root.not_valid_after_utc), reverse=True)
    if named:
        return [*certificates, named[0]]  # check 3 verifies the signature
    raise CertificateError(
        f"no trusted root is named {last.issuer.rfc4514_string()!r}, which issued the "
        f"certificate {last.serial_number:x} ({len(roots)} roots known)",
        reason="certificate_untrusted",
    )


def _is_valid(root: x509.Certificate, now: datetime) -> bool:
    return root.not_valid_before_utc <= now <= root.not_valid_after_utc


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_signatures(path: Sequence[x509.Certificate]) -> None:
    """3. Each certificate is issued by the next: names and signatures (6.1.3 (a) 1 and 4)."""
    if len(path) > 1:
        _check_link(path[0], path[1], 0)
        _check_issuers_links(tuple(path[1:]))


@functools.lru_cache(maxsize=_REMEMBERED_PATHS)
def _check_issuers_links(issuers: tuple[x509.Certificate, ...]) -> None:
    for index, (certificate, issuer) in enumerate(itertools.pairwise(issuers), start=1):
        _check_link(certificate, issuer, index)


def _check_link(certificate: x509.Certificate, issuer: x509.Certificate, index: int) -> None:
    if not _is_issued_by(certificate, issuer):
        raise CertificateError(
            f"the {_position(index)} was not issued by the one after it",
            reason="certificate_untrusted",
        )


def _check_validity(path: Sequence[x509.Certificate], now: datetime) -> None:
    """4. Every certificate of the path is valid now (6.1.3 (a) 2); the root too."""
    for index, certificate in enumerate(path):
        what = "root" if index == len(path) - 1 else _position(index)
        if now < certificate.not_valid_before_utc:
            raise CertificateError(
                f"the {what} is valid from {certificate.not_valid_before_utc.isoformat()}, "
                f"and it is {now.isoformat()}",
                advice="check the clocks of both machines",
                reason="certificate_not_yet_valid",
            )
        if now > certificate.not_valid_after_utc:
            raise CertificateError(
                f"the {what} expired at {certificate.not_valid_after_utc.isoformat()}, "
                f"and it is {now.isoformat()}",
                reason="certificate_expired",
            )


@functools.lru_cache(maxsize=_REMEMBERED_PATHS)
def _check_issuers(issuers: tuple[x509.Certificate, ...]) -> None:
    """5. Every issuer may sign certificates, and this many below it.

    RFC 5280, section 6.1.4 (k) to (n); X.509-SVID, sections 4.1 and 4.3. Section 3.2: a signing
    certificate's own SPIFFE ID has no path.
    """
    below = 0  # intermediates under this issuer that are not self-issued (6.1.4 (l))
    for issuer in issuers:
        name = issuer.subject.rfc4514_string()
        constraints = extension(issuer, x509.BasicConstraints)
        if constraints is None or not constraints.ca:
            raise CertificateError(
                f"the issuer {name!r} is not a CA", reason="certificate_constraint"
            )
        if constraints.path_length is not None and below > constraints.path_length:
            raise CertificateError(
                f"the issuer {name!r} allows {constraints.path_length} CAs below it, "
                f"and there are {below}",
                reason="certificate_path_length",
            )
        usage = extension(issuer, x509.KeyUsage)
        # 6.1.4 (n) requires nothing of a certificate without key usage. X.509-SVID requires key
        # usage in signing certificates, but roots of existing PKIs often lack it.
        unrestricted_root = usage is None and issuer is issuers[-1]
        if not unrestricted_root and (usage is None or not usage.key_cert_sign):
            raise CertificateError(
                f"the issuer {name!r} may not sign certificates (key usage)",
                reason="certificate_constraint",
            )
        names = extension(issuer, x509.SubjectAlternativeName)
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if names else ():
            if uri.startswith("spiffe://") and not _is_trust_domain(uri):
                raise CertificateError(
                    f"the issuer {name!r} has the SPIFFE ID {uri[:200]!r}, which is not that of a "
                    "trust domain",
                    reason="certificate_constraint",
                )
        below += issuer.subject != issuer.issuer


def _is_trust_domain(uri: str) -> bool:
    try:
        return not SpiffeId.parse(uri).path
    except IdentityError:
        return False


def _check_critical_extensions(path: Sequence[x509.Certificate]) -> None:
    """6. No critical extension that we do not process (6.1.4 (o), 6.1.5 (f))."""
    for index, certificate in enumerate(path):
        for found in certificate.extensions:
            if found.critical and found.oid not in _KNOWN_EXTENSIONS:
                raise CertificateError(
                    f"the {_position(index)} has the unknown critical extension "
                    f"{found.oid.dotted_string}",
                    reason="certificate_constraint",
                )


def _check_leaf_use(leaf: x509.Certificate) -> None:
    """7. The leaf is a leaf (X.509-SVID, sections 4.1, 4.3, 4.4 and 5.2)."""
    constraints = extension(leaf, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise CertificateError("the leaf certificate is a CA's", reason="certificate_constraint")
    usage = extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise CertificateError(
            "the leaf's key usage lacks digitalSignature", reason="certificate_constraint"
        )
    if usage.key_cert_sign or usage.crl_sign:
        raise CertificateError(
            "the leaf's key usage lets it sign certificates or CRLs",
            reason="certificate_constraint",
        )
    extended = extension(leaf, x509.ExtendedKeyUsage)
    if extended is not None and not {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    } <= set(extended):
        raise CertificateError(
            "the leaf's extended key usage lacks serverAuth or clientAuth",
            reason="certificate_constraint",
        )


def _check_key(leaf: x509.Certificate, ours: PublicKey) -> None:
    """8. The leaf is for our key."""
    try:
        matches = leaf.public_key() == ours
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"the leaf's key cannot be parsed: {error}", reason="certificate_malformed"
        ) from error
    if not matches:
        raise CertificateError(
            "the leaf certificate is for another key than ours", reason="certificate_key_mismatch"
        )


def _check_names(leaf: x509.Certificate, identity: Identity) -> None:
    """9. Exactly the names that were asked for (X.509-SVID, section 2: one URI SAN)."""
    names = extension(leaf, x509.SubjectAlternativeName)
    found = list(names) if names is not None else []
    uris = [name.value for name in found if isinstance(name, x509.UniformResourceIdentifier)]
    if uris != [str(identity.spiffe_id)]:
        raise CertificateError(
            f"the leaf's URI SANs are {uris!r}, and {str(identity.spiffe_id)!r} was asked for",
            reason="certificate_name_mismatch",
        )
    dns_names = sorted(name.value for name in found if isinstance(name, x509.DNSName))
    if dns_names != list(identity.dns_names):
        raise CertificateError(
            f"the leaf's DNS SANs are {dns_names!r}, and {list(identity.dns_names)!r} were "
            "asked for",
            reason="certificate_name_mismatch",
        )
    if len(found) != len(uris) + len(dns_names):
        raise CertificateError(
            "the leaf has SANs that are neither URIs nor DNS names",
            reason="certificate_name_mismatch",
        )
