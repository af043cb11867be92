"""Revocation in AMD's hierarchy (57230, section 4.4; RFC 5280, section 6.3).

Owns the decision which lists a chain needs. The ARK's list covers what the ARK issued: the ASK or
ASVK. A list by the ASK or ASVK is used if there is one. AMD publishes none, so raise the minimum
TCB or deny the chip to revoke a VCEK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.attestation.revocation import (
    Issued,
    Issuer,
    RevocationList,
    read_revocation_list,
    require_not_revoked,
)
from sds.attestation.snp.certificate import PSS_ALGORITHMS, Certificate, signature_holds
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sds.attestation.snp.chain import Chain


def of_amds_kind(one: RevocationList) -> bool:
    """Say whether a list is signed with AMD's algorithm, RSASSA-PSS."""
    return one.signed.algorithm in PSS_ALGORITHMS


def read_amd_list(
    der: bytes, *, issuers: Iterable[Certificate], origin: str = "the list"
) -> RevocationList:
    """Read a list, and check that one of our issuers signed it.

    Args:
        der: the list.
        issuers: the available ARKs, ASKs and ASVKs.
        origin: where the list came from, for messages.

    Raises:
        EvidenceError: ``revocation_list``: it cannot be read, is signed with another algorithm, is
            by an unknown issuer, or its signature is invalid.
    """
    one = read_revocation_list(der, origin=origin)
    if not of_amds_kind(one):
        raise EvidenceError(f"{origin} is not signed as AMD signs", reason="revocation_list")
    named = [issuer for issuer in issuers if issuer.subject == one.issuer]
    if not named:
        raise EvidenceError(
            f"{origin} is by {one.issuer_name}, which issues nothing that is trusted here",
            reason="revocation_list",
            advice="remove it, or configure the root that it belongs to",
        )
    if not any(signature_holds(one.signed, issuer.public_key) for issuer in named):
        raise EvidenceError(
            f"{origin} is damaged or forged: {named[0].common_name} did not sign it",
            reason="revocation_list",
            advice="fetch it again",
        )
    return one


def check_revocation(chain: Chain, lists: tuple[RevocationList, ...], now: datetime) -> None:
    """Check that nothing in the chain is revoked at the time ``now``.

    Raises:
        EvidenceError: ``revocation_list``: 1. the chain's root has no list that it signed.
        EvidenceError: ``revocation_list_stale``: 2. none of its lists is current.
        EvidenceError: ``certificate_revoked``: 3. a certificate is revoked.
    """
    root, issuer, leaf = chain.root, chain.issuer, chain.leaf.certificate
    require_not_revoked(lists, _issuer(root), map(_issued, (issuer, root)), now)
    if any(one.issuer == issuer.subject for one in lists):
        require_not_revoked(lists, _issuer(issuer), (_issued(leaf),), now)


def _issuer(certificate: Certificate) -> Issuer:
    return Issuer(
        name=certificate.common_name,
        subject=certificate.subject,
        signed=lambda one: (
            of_amds_kind(one) and signature_holds(one.signed, certificate.public_key)
        ),
    )


def _issued(certificate: Certificate) -> Issued:
    return Issued(name=certificate.common_name, serial=certificate.serial)
