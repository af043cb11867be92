"""Verifies endorsement certificates, by which a manufacturer vouches for a TPM.

Owns the check of the chain. Invariants: a key counts only if every certificate of a path to a
configured root is valid now and the first is for an endorsement key; a certificate of the same
manufacturer for another purpose is refused. Only keys that a root vouches for verify signatures:
strangers choose all other keys, and some kinds cost fifty times as much. Sources: TCG, EK
Credential Profile for TPM 2.0, section 3.2; RFC 5280, section 6.1. Manufacturers publish no
dependable revocation lists, so this module uses none; ``eks`` in the reference values names single
keys instead.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING, Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sds.attestation.tpm.keys import rsa_key
from sds.errors import CertificateError, EvidenceError
from sds.pki.chain import load_certificate
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from sds.attestation.tpm.keys import AttestationKey

MAX_PATH: Final = 6
MOST_TRIES: Final = 64
"""The most signatures that are verified in search of a path: strangers choose the certificates."""
MOST_BYTES: Final = 16 * 1024
"""The most bytes of all certificates together; a real chain has less than 8 KiB. One of 16 KiB,
full of short names, takes 20 ms, and its sender has proven nothing."""
_WHAT: Final = "a certificate of the endorsement key"
_Path = tuple[x509.Certificate, ...]
_Extension = TypeVar("_Extension", bound=x509.ExtensionType)
_PROCESSED: Final = frozenset(
    {
        x509.BasicConstraints.oid,
        x509.KeyUsage.oid,
        x509.ExtendedKeyUsage.oid,
        # The TPM's model: nothing here decides by it.
        x509.SubjectAlternativeName.oid,
        # Every policy is accepted (RFC 5280, section 6.1.1 (c) and (e)).
        x509.CertificatePolicies.oid,
    }
)
_EK_CERTIFICATE: Final = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate (EK Credential Profile, section 3.2.16)."""


def key_digest(key: AttestationKey) -> str:
    """Return the SHA-256 of a key's SubjectPublicKeyInfo in hex, as ``eks`` names it."""
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def endorsement_key(der: bytes) -> AttestationKey:
    """Return the key of an endorsement certificate; nothing is verified.

    Raises:
        EvidenceError: ``certificate_malformed``: it cannot be read, or its key cannot be used.
    """
    return _key(_read(der))


def check_size(chain: Sequence[bytes]) -> None:
    """Check that an endorsement certificate and its issuers are small enough to be read.

    Raises:
        EvidenceError: ``certificate_malformed``: they have more than :data:`MOST_BYTES` together.
    """
    size = sum(map(len, chain))
    if size > MOST_BYTES:
        raise EvidenceError(
            f"the endorsement certificate and its issuers have {size} bytes, more than "
            f"{MOST_BYTES}",
            advice="send only the issuers of this certificate",
            reason="certificate_malformed",
        )


def _key(certificate: x509.Certificate) -> AttestationKey:
    with reading(_WHAT, EvidenceError, reason="certificate_malformed"):
        key = certificate.public_key()
        if isinstance(key, rsa.RSAPublicKey):
            numbers = key.public_numbers()
            return rsa_key(numbers.n, numbers.e)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key
    raise EvidenceError(
        f"{_WHAT} has a key of another kind than RSA or an elliptic curve's",
        reason="certificate_malformed",
    )


def verify_endorsement(
    chain: Sequence[bytes], roots: Iterable[bytes], *, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Find and check the path of an endorsement certificate.

    Args:
        chain: the chain in DER: the endorsement certificate first, then issuers in any order.
        roots: the roots that are trusted for TPMs, in DER.
        now: the moment at which every certificate must be valid.

    Returns:
        The path, root last.

    Raises:
        EvidenceError: ``chain_untrusted``: 1. the first one is not for an endorsement key; 2. there
            is no path to a root; 3. an issuer may not issue; 5. a critical extension is unknown.
            ``certificate_validity``: 4. one is not valid now. ``certificate_malformed``: one cannot
            be read, or together they have more than :data:`MOST_BYTES`. If there are several paths,
            the error is that of the first.
    """
    check_size(chain)
    leaf, *others = map(_read, chain)
    _check_use(leaf)
    failure: EvidenceError | None = None
    for path in _paths(leaf, others, tuple(map(_read, roots))):
        try:
            _check_path(path, now)
        except EvidenceError as error:
            failure = failure or error
        else:
            return path
    raise failure or EvidenceError(
        f"no path leads from a root to the endorsement certificate, which "
        f"{leaf.issuer.rfc4514_string()!r} issued",
        reason="chain_untrusted",
        advice="name the manufacturer's root in ek_roots, and send its intermediates",
    )


def _check_use(leaf: x509.Certificate) -> None:
    # 1. EK Credential Profile, sections 3.2.15 and 3.2.16.
    uses = _extension(leaf, x509.ExtendedKeyUsage)
    constraints = _extension(leaf, x509.BasicConstraints)
    if uses is None or _EK_CERTIFICATE not in uses or (constraints and constraints.ca):
        raise EvidenceError(
            "the certificate is not for an endorsement key (2.23.133.8.1)",
            reason="chain_untrusted",
        )


def _paths(
    leaf: x509.Certificate, others: Iterable[x509.Certificate], trusted: Iterable[x509.Certificate]
) -> list[_Path]:
    """2. Find the paths from the roots down to the leaf, by name and signature.

    A manufacturer may certify one key of an issuer twice, so there may be several. One through a
    certificate that is not an issuer's ends there, and is refused later.

    Returns:
        The paths, each with the root last.
    """
    roots = tuple(dict.fromkeys(trusted))
    candidates = [one for one in dict.fromkeys((leaf, *others)) if one not in roots]
    found: list[_Path] = []
    waiting: deque[_Path] = deque((root,) for root in roots)
    tries = 0
    while waiting:
        path = waiting.popleft()
        if path[0] == leaf:
            found.append(path)
            continue
        below = [] if len(path) >= MAX_PATH else _named(path, candidates)
        tries += len(below)
        if tries > MOST_TRIES:
            break
        waiting += [(one, *path) for one in below if _issued(one, path[0])]
    return found


def _named(path: _Path, candidates: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """Return those that name the lowest of the path as their issuer, without those in the path."""
    name = path[0].subject
    return [one for one in candidates if one.issuer == name and one not in path]


def _check_path(path: _Path, now: datetime) -> None:
    # 3. RFC 5280, section 6.1.4 (k) to (n).
    for below, issuer in enumerate(path[1:]):
        may = _extension(issuer, x509.BasicConstraints)
        usage = _extension(issuer, x509.KeyUsage)
        long = may is not None and may.path_length is not None and may.path_length < below
        if may is None or not may.ca or long or (usage is not None and not usage.key_cert_sign):
            raise EvidenceError(
                f"{issuer.subject.rfc4514_string()!r} may not issue certificates here",
                reason="chain_untrusted",
            )
    # 4. RFC 5280, section 6.1.3 (a) (2).
    for one in path:
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            raise EvidenceError(
                f"{one.subject.rfc4514_string()!r} is valid from {one.not_valid_before_utc:%FT%TZ} "
                f"to {one.not_valid_after_utc:%FT%TZ}, the time is {now:%FT%TZ}",
                reason="certificate_validity",
            )
    # 5. RFC 5280, sections 6.1.4 (o) and 6.1.5 (f); a root is an anchor, which an operator chose.
    for one in path[:-1]:
        for extension in one.extensions:
            if extension.critical and extension.oid not in _PROCESSED:
                raise EvidenceError(
                    f"{one.subject.rfc4514_string()!r} has the critical extension "
                    f"{extension.oid.dotted_string}, which is not processed here",
                    reason="chain_untrusted",
                )


def issuers_above(leaf: bytes, known: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return those certificates that may be above a leaf, by name: evidence has room for few.

    Args:
        leaf: the endorsement certificate in DER.
        known: issuers in DER, readable.

    Raises:
        EvidenceError: ``certificate_malformed``: one cannot be read.
    """
    left = {der: _read(der) for der in known}
    names, found = {_read(leaf).issuer}, list[bytes]()
    while above := [der for der, one in left.items() if one.subject in names]:
        found += above
        names |= {left.pop(der).issuer for der in above}
    return tuple(found)


def _read(der: bytes) -> x509.Certificate:
    try:
        return load_certificate(der, "endorsement certificate")
    except CertificateError as error:
        raise EvidenceError(error.message, reason="certificate_malformed") from error


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        _key(issuer)  # before the signature: one by a key of unusual numbers is costly
        certificate.verify_directly_issued_by(issuer)
    except (EvidenceError, ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    with reading(_WHAT, EvidenceError, reason="certificate_malformed"):
        try:
            return certificate.extensions.get_extension_for_class(kind).value
        except x509.ExtensionNotFound:
            return None
