"""Revocation in Intel's hierarchy (QVL, step 4.1.2.5.7; RFC 5280, section 6.3).

Owns the decision which lists a chain needs, and how a list is signed. The root's list covers the
authority below it and the TCB signing certificate; the list of the Platform or Processor CA covers
the PCK certificate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sds.attestation.revocation import (
    Issued,
    Issuer,
    RevocationList,
    read_revocation_list,
    require_not_revoked,
)
from sds.attestation.tdx.chain import PCK_ISSUERS, common_name, intel_certificates
from sds.errors import EvidenceError
from sds.pki.der import elements

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sds.attestation.tdx.chain import IntelChain

_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
_SUBJECT: Final = 5  # in TBSCertificate (RFC 5280, section 4.1), after the version


def of_intels_kind(one: RevocationList) -> bool:
    """Say whether a list is signed with Intel's algorithm, ECDSA with SHA-256."""
    return one.signed.algorithm == _ECDSA_SHA256


def read_intel_list(
    der: bytes, *, roots: Iterable[bytes] = (), origin: str = "the list"
) -> RevocationList:
    """Read a list, and check that one of our issuers signed it.

    Args:
        der: the list.
        roots: configured roots in DER. The authorities below them come only with evidence, so a
            list that names one of them is checked when the evidence is verified.
        origin: where the list came from, for messages.

    Raises:
        EvidenceError: ``revocation_list``: it cannot be read, is signed with another algorithm, is
            by an unknown issuer, or its signature is invalid.
    """
    one = read_revocation_list(der, origin=origin)
    if not of_intels_kind(one):
        raise EvidenceError(f"{origin} is not signed as Intel signs", reason="revocation_list")
    configured = [x509.load_der_x509_certificate(root) for root in roots]
    issuers = [_issuer_of_lists(known) for known in (*intel_certificates(), *configured)]
    if any(issuer.subject == one.issuer and issuer.signed(one) for issuer in issuers):
        return one
    name = x509.load_der_x509_crl(der).issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    if configured and len(name) == 1 and name[0].value in PCK_ISSUERS:
        return one
    if any(issuer.subject == one.issuer for issuer in issuers):
        raise EvidenceError(
            f"{origin} is damaged or forged: {one.issuer_name} did not sign it",
            reason="revocation_list",
            advice="fetch it again",
        )
    raise EvidenceError(
        f"{origin} is by {one.issuer_name}, which issues nothing that is trusted here",
        reason="revocation_list",
        advice="remove it, or configure the root that it belongs to",
    )


def check_revocation(chain: IntelChain, lists: Iterable[RevocationList], now: datetime) -> None:
    """Check that no certificate of the chain is revoked (Intel's QVL, step 4.1.2.5.7).

    Every issuer in the chain must have a list of its own: the root for the authority below it and
    for the TCB signing certificate, the Platform or Processor CA for the PCK.

    Raises:
        EvidenceError: ``revocation_list``: 1. an issuer has no list that it signed.
        EvidenceError: ``revocation_list_stale``: 2. none of an issuer's lists is current.
        EvidenceError: ``certificate_revoked``: 3. a certificate is revoked.
    """
    lists = tuple(lists)
    for index, certificate in enumerate(chain.certificates[1:], start=1):
        issued = [chain.certificates[index - 1]]
        if certificate is chain.root:
            issued.append(certificate)
        require_not_revoked(
            lists,
            _issuer_of_lists(certificate),
            [Issued(name=common_name(one), serial=one.serial_number) for one in issued],
            now,
        )


def _issuer_of_lists(certificate: x509.Certificate) -> Issuer:
    """Return this certificate's subject as the issuer of revocation lists."""
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)

    def signed(one: RevocationList) -> bool:
        if one.signed.algorithm != _ECDSA_SHA256:
            return False
        try:
            key.verify(one.signed.signature, one.signed.content, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True

    subject = elements(certificate.tbs_certificate_bytes)[_SUBJECT]
    return Issuer(name=common_name(certificate), subject=subject, signed=signed)
