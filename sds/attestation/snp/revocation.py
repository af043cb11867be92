"""Revocation lists of AMD's roots (57230, section 4.4; RFC 5280, sections 5 and 6.3).

Owns their reading. Invariant: a list says something only where the pinned root signed it and the
moment of verification lies between its two updates. It covers what the root issued: the ASK and
the ASVK. A VCEK is revoked by raising the minimum TCB or by denying its chip.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509

from sds.attestation.pem import UNREADABLE
from sds.attestation.snp.certificate import (
    PSS_ALGORITHMS,
    Signed,
    signature_holds,
    split_sequence,
    split_signed,
)
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.snp.chain import Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """A revocation list, read and not verified.

    Attributes:
        signed: its signed part, algorithm and signature.
        issuer: the issuer's name in DER.
        this_update: when it was made.
        next_update: until when it counts.
        serials: what it revokes.
    """

    signed: Signed = field(repr=False)
    issuer: bytes = field(repr=False)
    this_update: datetime
    next_update: datetime
    serials: frozenset[int]


def read_revocation_list(der: bytes) -> RevocationList:
    """Read a revocation list in DER.

    Raises:
        EvidenceError: ``revocation_list``: it cannot be read, is signed with another algorithm, has
            no next update, or holds a critical extension (RFC 5280, section 5.2: such a list may
            not be used by who does not know it).
    """
    try:
        signed = split_signed(der)
        parsed = x509.load_der_x509_crl(der)
        extensions = [*parsed.extensions, *(e for entry in parsed for e in entry.extensions)]
        # TBSCertList: version, signature, issuer, …
        _, algorithm, issuer, *_ = split_sequence(signed.content)
        serials = frozenset(entry.serial_number for entry in parsed)
        this_update, next_update = parsed.last_update_utc, parsed.next_update_utc
    except UNREADABLE as error:
        raise EvidenceError(
            f"a revocation list cannot be read: {error}", reason="revocation_list"
        ) from error
    if algorithm != signed.algorithm or algorithm not in PSS_ALGORITHMS:
        raise EvidenceError(
            "a revocation list is not signed as AMD signs", reason="revocation_list"
        )
    if any(extension.critical for extension in extensions):
        raise EvidenceError(
            "a revocation list holds a critical extension", reason="revocation_list"
        )
    if next_update is None:
        raise EvidenceError(
            "a revocation list without a next update is never stale", reason="revocation_list"
        )
    return RevocationList(
        signed=signed,
        issuer=issuer,
        this_update=this_update,
        next_update=next_update,
        serials=serials,
    )


def check_revocation(chain: Chain, lists: tuple[RevocationList, ...], now: datetime) -> None:
    """Hold that nothing in the chain is revoked at the time ``now``.

    Raises:
        EvidenceError: ``revocation_list``: 1. there are lists, but none by this chain's root; 2.
            one is not signed by it.
        EvidenceError: ``revocation_list_stale``: 3. one is not current.
        EvidenceError: ``certificate_revoked``: 4. it revokes a certificate that the root issued.
    """
    ours = [entry for entry in lists if entry.issuer == chain.root.subject]
    if not ours:
        raise EvidenceError(
            f"none of the revocation lists is by {chain.root.common_name}",
            advice="give the list of every product that is to be accepted",
            reason="revocation_list",
        )
    for entry in ours:
        if not signature_holds(entry.signed, chain.root.public_key):
            raise EvidenceError(
                f"the list is not signed by {chain.root.common_name}", reason="revocation_list"
            )
        if not entry.this_update <= now <= entry.next_update:
            raise EvidenceError(
                f"the list of {chain.root.common_name} counts from {entry.this_update:%FT%TZ} to "
                f"{entry.next_update:%FT%TZ}, the time is {now:%FT%TZ}",
                advice="fetch the newest one",
                reason="revocation_list_stale",
            )
        for certificate in (chain.issuer, chain.root):
            if certificate.serial in entry.serials:
                raise EvidenceError(
                    f"{certificate.common_name} (serial {certificate.serial:#x}) is revoked",
                    reason="certificate_revoked",
                )
