"""Reads trust anchors as a whole, before any part of the program stores or serves them.

Owns what makes a root usable by every client that gets it. Parsers read certificates lazily, and
they differ: a root that our library accepts can make go-spiffe drop a whole answer with our own
identity in it, and make Envoy refuse a whole validation context. Invariants: our library and others
(:mod:`sds.pki.portable`) can read the names, times, key and every extension of a root that passed;
such a root is a certificate authority with a key that Envoy and Go know; nothing is silently
skipped.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from sds.errors import CertificateError
from sds.pki.chain import REMEMBERED_BYTES, load_certificate
from sds.pki.constraints import extension
from sds.pki.portable import unportable
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_LEAST_RSA_BITS: Final = 1024
_MOST_RSA_BITS: Final = 16_384
MAX_ROOTS: Final = 64
"""The most roots of one trust domain."""
MAX_BUNDLE_BYTES: Final = 256 * 1024
"""The most bytes of all its roots in DER: every subscriber gets them in one message."""
_REMEMBERED: Final = 256
_REMEMBERED_BUNDLES: Final = 32


def fit_a_bundle(roots: Collection[bytes]) -> bool:
    """Say whether one trust domain may have all of these roots together."""
    return len(roots) <= MAX_ROOTS and sum(map(len, roots)) <= MAX_BUNDLE_BYTES


def read_root(der: bytes, what: str = "root") -> x509.Certificate:
    """Parse a trust anchor and everything in it.

    Args:
        der: the certificate.
        what: names the certificate in errors.

    Raises:
        CertificateError: ``certificate_malformed``: it cannot be read as a whole;
            ``certificate_constraint``: it is not a certificate authority (RFC 5280, section
            4.2.1.9), may not sign certificates (section 4.2.1.3), or has a key that clients do not
            know.
    """
    return (_remembered_root if len(der) <= REMEMBERED_BYTES else _read_root)(der, what)


def _read_root(der: bytes, what: str) -> x509.Certificate:
    certificate = load_certificate(der, what)
    with reading(f"the {what} cannot be read", CertificateError, reason="certificate_malformed"):
        key = certificate.public_key()
        constraints = extension(certificate, x509.BasicConstraints)
        usage = extension(certificate, x509.KeyUsage)
        serial = certificate.serial_number
        refused = unportable(certificate) if _is_known(key) else ""
    if serial < 0:
        raise CertificateError(
            f"the {what} has a negative serial number (RFC 5280, section 4.1.2.2)",
            reason="certificate_malformed",
        )
    if constraints is None or not constraints.ca:
        raise CertificateError(
            f"the {what} is not a certificate authority", reason="certificate_constraint"
        )
    if usage is not None and not usage.key_cert_sign:
        raise CertificateError(
            f"the {what} may not sign certificates (key usage)", reason="certificate_constraint"
        )
    if not _is_known(key):
        raise CertificateError(
            f"the {what} has a key that not every client knows: {_kind(key)}",
            reason="certificate_constraint",
            advice="use RSA, P-256, P-384, P-521 or Ed25519",
        )
    if refused:
        raise CertificateError(
            f"the {what} {refused}: not every client can read it",
            reason="certificate_malformed",
            advice="issue it again without that: Go's programs drop a whole bundle that has it",
        )
    return certificate


_remembered_root: Final = functools.lru_cache(maxsize=_REMEMBERED)(_read_root)


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Say whether it is a root, and not an intermediate that somebody trusts."""
    if certificate.subject != certificate.issuer:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except Exception:  # noqa: BLE001  whatever hinders: nobody will verify it either
        return False
    return True


@functools.lru_cache(maxsize=_REMEMBERED_BUNDLES)
def complete_anchors(roots: tuple[bytes, ...], what: str = "root") -> tuple[bytes, ...]:
    """Return the anchors under which a verifier that requires whole chains can verify.

    A chain must end in a self-signed certificate, unless the verifier accepts partial chains
    (OpenSSL's ``X509_V_FLAG_PARTIAL_CHAIN``). Envoy's default validator does; its SPIFFE validator
    does not, and answers ``fail_verify_error``.

    Args:
        roots: the anchors in DER, each of which :func:`read_root` accepts.
        what: names an anchor in errors.

    Returns:
        The self-signed anchors, and intermediates that chain to one of them, in the given order.
    """
    parsed = {der: read_root(der, what) for der in roots}
    found = {der: one for der, one in parsed.items() if is_self_signed(one)}
    complete = set(found)
    while found:
        # Those found before were compared with all: each pair is verified once at most.
        found = {
            der: one
            for der, one in parsed.items()
            if der not in complete and _has_issuer(one, found.values())
        }
        complete |= found.keys()
    return tuple(der for der in roots if der in complete)


def _has_issuer(certificate: x509.Certificate, among: Iterable[x509.Certificate]) -> bool:
    return any(_issued(certificate, issuer) for issuer in among)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001  as above
        return False
    return True


def _is_known(key: object) -> bool:
    match key:
        case ec.EllipticCurvePublicKey():
            return isinstance(key.curve, _CURVES)
        case rsa.RSAPublicKey():
            return _LEAST_RSA_BITS <= key.key_size <= _MOST_RSA_BITS
        case ed25519.Ed25519PublicKey():
            return True
    return False


def _kind(key: object) -> str:
    match key:
        case ec.EllipticCurvePublicKey():
            return f"the curve {key.curve.name}"
        case rsa.RSAPublicKey():
            return f"RSA of {key.key_size} bits"
    return type(key).__name__
