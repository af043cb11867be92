"""Finds the path from a leaf to a root among certificates in any order.

Owns :func:`sorted_path`. RFC 8446, section 4.4.2, asks to be prepared for certificates that are
extraneous or in any order, although each should certify the one before it. Invariant: this module
only chooses a path; the caller must verify it (:mod:`sds.pki.chain`). Certificates of one name,
such as all roots of Istio, cost a signature's verification only if their key may be the issuer's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from sds.errors import CertificateError
from sds.pki.constraints import extension
from sds.untrusted_input import reading

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_CANDIDATES: Final = 32
"""The most certificates to search for a path: a bound on work."""


def sorted_path(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
) -> tuple[x509.Certificate, ...] | None:
    """Return the shortest path from the leaf to a certificate that a root issued.

    Args:
        leaf: the certificate at which the path begins.
        others: candidates for intermediates, in any order, repeated or extraneous.
        roots: the certificates at which the path ends; they are not part of the result.

    Returns:
        The leaf and its intermediates, each issued by the next; None if there is no path. Of
        several intermediates with one name and key, the one that ends last.
    """
    candidates = list(dict.fromkeys(one for one in others if one != leaf))[:MAX_CANDIDATES]
    # An intermediate that was renewed with its key may come beside the former one.
    candidates.sort(key=lambda one: one.not_valid_after_utc, reverse=True)
    paths: list[tuple[x509.Certificate, ...]] = [(leaf,)]
    seen = {leaf}
    while paths:
        longer = []
        for path in paths:
            if any(_issued(path[-1], root) for root in roots):
                return path
            for one in candidates:
                if one not in seen and _issued(path[-1], one):
                    seen.add(one)
                    longer.append((*path, one))
        paths = longer
    return None


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject or _has_another_key(certificate, issuer):
        return False
    return _verifies(certificate, issuer)


def _has_another_key(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Say whether both name the issuer's key, and differ (RFC 5280, 4.2.1.1 and 4.2.1.2)."""
    try:
        with reading("key identifiers cannot be read", CertificateError):
            names = extension(certificate, x509.AuthorityKeyIdentifier)
            own = extension(issuer, x509.SubjectKeyIdentifier)
    except CertificateError:
        return True  # unreadable: the verification of the path refuses it
    if names is None or names.key_identifier is None or own is None:
        return False
    return names.key_identifier != own.digest


def _verifies(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
