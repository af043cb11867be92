"""Revocation lists of every hierarchy that vouches for evidence (RFC 5280, sections 5 and 6.3).

Owns how a list is read and when it counts. Invariants: a certificate counts as "not revoked" only
if a list that its issuer signed is current at the moment of verification; a list that another
issuer signed under the same name is ignored; if there is an expired list beside a current one of
the same issuer, what it revoked stays revoked; a damaged, delta or partial list is never used.

Each hierarchy decides which issuers must have a list: ``snp.revocation``, ``tdx.revocation``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cryptography import x509

from sds.attestation.pem import UNREADABLE
from sds.attestation.snp.certificate import Signed, split_signed
from sds.errors import EvidenceError
from sds.pki.der import elements

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

MAX_LIST_BYTES: Final = 1024 * 1024
_MAX_NUMBER_BITS: Final = 160
_DELTA: Final = x509.DeltaCRLIndicator.oid
_PARTIAL: Final = frozenset({x509.IssuingDistributionPoint.oid, x509.CertificateIssuer.oid})
"""RFC 5280, sections 5.2.5 and 5.3.3; both should be critical, and count here in any case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """A revocation list, read; whether its issuer signed it is not checked yet.

    Attributes:
        der: the whole list.
        origin: the file that it came from, for messages.
        signed: its signed part, algorithm and signature, for the check of the signature.
        issuer: the issuer's name in DER.
        authority: the issuer's key identifier, or nothing if the list names none.
        number: the CRL number, or None.
        this_update: when it was made.
        next_update: until when it is valid.
        serials: the serial numbers that it revokes.
    """

    der: bytes = field(repr=False)
    origin: str
    signed: Signed = field(repr=False)
    issuer: bytes = field(repr=False)
    authority: bytes = field(repr=False)
    number: int | None
    this_update: datetime
    next_update: datetime
    serials: frozenset[int] = field(repr=False)

    @property
    def issuer_name(self) -> str:
        """Return the issuer's name for people."""
        return x509.load_der_x509_crl(self.der).issuer.rfc4514_string()


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """The issuer that must have signed a list.

    Attributes:
        name: its name in messages.
        subject: its name in DER.
        signed: says whether its key made the signature of a list.
    """

    name: str
    subject: bytes = field(repr=False)
    signed: Callable[[RevocationList], bool] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that a list may revoke."""

    name: str
    serial: int


def read_revocation_list(der: bytes, *, origin: str = "the list") -> RevocationList:
    """Read a complete revocation list in DER.

    Args:
        der: one list, no byte more.
        origin: where it came from, for messages.

    Raises:
        EvidenceError: ``revocation_list``: it cannot be read, has no next update, is a delta list,
            or of a part of the certificates or another issuer's, or has a critical extension (RFC
            5280, section 5.2: a list with an unknown one must not be used).
    """
    try:
        signed = split_signed(der, limit=MAX_LIST_BYTES)
        parsed = x509.load_der_x509_crl(der)
        extensions = list(parsed.extensions)
        entries = [(entry.serial_number, list(entry.extensions)) for entry in parsed]
        # TBSCertList: version, signature, issuer, …
        _, algorithm, issuer, *_ = elements(signed.content)
        parsed.issuer.rfc4514_string()
        this_update, next_update = parsed.last_update_utc, parsed.next_update_utc
    except UNREADABLE as error:
        raise EvidenceError(
            f"{origin} is not a revocation list that can be read: {error}",
            reason="revocation_list",
            advice="fetch it again; give a complete list in PEM or DER",
        ) from error
    if algorithm != signed.algorithm:
        raise EvidenceError(
            f"{origin}: the algorithms inside and outside differ", reason="revocation_list"
        )
    if any(extension.oid == _DELTA for extension in extensions):
        raise EvidenceError(
            f"{origin} is a delta list, which names changes only",
            reason="revocation_list",
            advice="give the complete list",
        )
    every = [*extensions, *(e for _, some in entries for e in some)]
    if any(one.oid in _PARTIAL for one in every):
        raise EvidenceError(
            f"{origin} is of a part of the certificates, or of another issuer's",
            reason="revocation_list",
            advice="give the complete list of the issuer itself",
        )
    if any(one.critical for one in every):
        raise EvidenceError(f"{origin} has an unknown critical extension", reason="revocation_list")
    if next_update is None:
        raise EvidenceError(
            f"{origin} has no next update, so it would never be stale", reason="revocation_list"
        )
    number = _number(extensions)
    if number is not None and number.bit_length() > _MAX_NUMBER_BITS:
        raise EvidenceError(
            f"{origin} has a CRL number of {number.bit_length()} bits, more than "
            f"{_MAX_NUMBER_BITS} (RFC 5280, section 5.2.3)",
            reason="revocation_list",
        )
    return RevocationList(
        der=der,
        origin=origin,
        signed=signed,
        issuer=issuer,
        authority=_authority(extensions),
        number=number,
        this_update=this_update,
        next_update=next_update,
        serials=frozenset(serial for serial, _ in entries),
    )


def require_not_revoked(
    lists: Iterable[RevocationList], issuer: Issuer, issued: Iterable[Issued], now: datetime
) -> None:
    """Check that a current list of this issuer revokes none of these certificates.

    Args:
        lists: every list at hand, of any issuer.
        issuer: the issuer whose lists count.
        issued: the certificates that this issuer signed.
        now: the moment of verification.

    Raises:
        EvidenceError: ``revocation_list``: 1. no list names this issuer and was signed by it.
        EvidenceError: ``revocation_list_stale``: 2. none of them is current.
        EvidenceError: ``certificate_revoked``: 3. one of them, current or not, revokes a
            certificate.
    """
    named = [one for one in lists if one.issuer == issuer.subject]
    ours = [one for one in named if issuer.signed(one)]
    # 1.
    if not ours:
        raise EvidenceError(
            f"there is no revocation list of {issuer.name}"
            if not named
            else f"{named[0].origin} names {issuer.name}, and its signature is invalid",
            reason="revocation_list",
            advice=f"give the complete and current list of {issuer.name}",
        )
    # 2.
    if not any(one.this_update <= now <= one.next_update for one in ours):
        newest = max(ours, key=lambda one: one.this_update)
        raise EvidenceError(
            f"the list of {issuer.name} ({newest.origin}) is valid from "
            f"{newest.this_update:%FT%TZ} to {newest.next_update:%FT%TZ}, the time is "
            f"{now:%FT%TZ}",
            reason="revocation_list_stale",
            advice="fetch the newest one",
        )
    # 3.
    for certificate in issued:
        if any(certificate.serial in one.serials for one in ours):
            raise EvidenceError(
                f"{certificate.name} (serial {certificate.serial:#x}) is revoked by {issuer.name}",
                reason="certificate_revoked",
            )


def highest_numbers(lists: Iterable[RevocationList]) -> dict[tuple[bytes, bytes], int]:
    """Return the highest CRL number of each issuer (name and key identifier)."""
    found: dict[tuple[bytes, bytes], int] = {}
    for one in lists:
        if one.number is not None:
            key = (one.issuer, one.authority)
            found[key] = max(found.get(key, one.number), one.number)
    return found


def require_no_older(
    lists: Iterable[RevocationList], seen: Mapping[tuple[bytes, bytes], int]
) -> None:
    """Check that no issuer's newest list is older than one that was in force before.

    Args:
        lists: the lists that are to replace those in force.
        seen: the result of :func:`highest_numbers` for every earlier set.

    Raises:
        EvidenceError: ``revocation_list``: an issuer's highest CRL number is lower than one already
            seen, or is missing now.
    """
    lists = tuple(lists)
    numbered = highest_numbers(lists)
    for one in lists:
        key = (one.issuer, one.authority)
        if key in seen and key not in numbered:
            raise EvidenceError(
                f"{one.origin} has no CRL number, and number {seen[key]} of the same issuer was in "
                "force already",
                reason="revocation_list",
                advice="put the newest list back",
            )
    for key, number in numbered.items():
        if number < seen.get(key, number):
            one = next(one for one in lists if (one.issuer, one.authority) == key)
            raise EvidenceError(
                f"{one.origin} has the CRL number {number}, and number {seen[key]} of the same "
                "issuer was in force already",
                reason="revocation_list",
                advice="put the newest list back",
            )


def require_no_fewer(lists: Iterable[RevocationList], before: Iterable[RevocationList]) -> None:
    """Check that every issuer that has a list in force still has one.

    If an issuer had none, nothing would show that the certificates it revoked are revoked.

    Args:
        lists: the lists that are to replace those in force.
        before: the lists in force.

    Raises:
        EvidenceError: ``revocation_list``: an issuer's list is gone.
    """
    there = {one.issuer for one in lists}
    for one in before:
        if one.issuer not in there:
            raise EvidenceError(
                f"{one.origin}: the list of {one.issuer_name} is gone",
                reason="revocation_list",
                advice="put it back; to judge without it on purpose, start again",
            )


def _authority(extensions: list[x509.Extension[x509.ExtensionType]]) -> bytes:
    for extension in extensions:
        if isinstance(extension.value, x509.AuthorityKeyIdentifier):
            return extension.value.key_identifier or b""
    return b""


def _number(extensions: list[x509.Extension[x509.ExtensionType]]) -> int | None:
    for extension in extensions:
        if isinstance(extension.value, x509.CRLNumber):
            return extension.value.crl_number
    return None
