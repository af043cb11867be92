"""Finds certificates that the host did not give, in a directory or at a cache (AMD 57230).

Owns where a VCEK is sought. Invariants: a found certificate adds no trust and only completes
evidence that the other side verifies; a certificate that does not belong to the report is not used;
requests, sizes and times are bounded.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import parse_qsl, urlencode

from sds import threads
from sds.attestation.evidence import EvidenceKind
from sds.attestation.pem import der_certificates
from sds.attestation.snp.certificate import Certificate
from sds.attestation.snp.leaf import CHIP_ID_BYTES, Leaf, read_leaf
from sds.attestation.snp.report import (
    TCB_COMPONENTS,
    TURIN_CHIP_ID_BYTES,
    Product,
    Report,
    Tcb,
)
from sds.errors import EndorsementUnavailableError, EvidenceError
from sds.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from sds.attestation.evidence import Attester, Evidence, ReportData
    from sds.threads import Threads

MAX_ANSWER_BYTES: Final = 64 * 1024
ANSWER_SECONDS: Final = 5.0
"""How long a directory may take: evidence waits for it, and another source may have the rest."""
_MAX_FILES: Final = 1024
_MAX_ISSUERS: Final = 16
"""The most certificates that may be above a leaf; AMD has two. Each is compared with each."""
# 57230, section 4.1: the query names a component by these.
_QUERY: Final = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}
_TARGET: Final = re.compile(r"/vcek/v1/(Milan|Genoa|Turin)/((?:[0-9a-f]{2}){8,64})\?(.{1,100})")
_VERSION: Final = re.compile(r"[0-9]{2,3}", re.ASCII)
_SUFFIXES: Final = frozenset({".cer", ".crt", ".der", ".pem"})


class Endorsements(Protocol):
    """A source of certificates for a report."""

    async def certificates(self, report: Report) -> tuple[bytes, ...]:
        """Return DER, leaf first, then whatever helps; empty if there is none for this report.

        Raises:
            EndorsementUnavailableError: they are not available now.
        """
        ...


class EndorsedAttester:
    """An attester that completes SEV-SNP evidence if the host gave no fitting certificates.

    Hosts keep their certificates in a table, and may forget to renew it after a firmware update: a
    leaf of another chip or TCB is as useless as none.
    """

    def __init__(self, inner: Attester, sources: Iterable[Endorsements]) -> None:
        """Complete the evidence of ``inner``; ``sources`` are asked in order."""
        self._inner = inner
        self._sources = tuple(sources)

    async def attest(self, data: ReportData) -> Evidence:
        """Collect evidence; certificates that belong to the report are never replaced.

        Raises:
            EvidenceError: the inner attester's error, or that of the last source if none had any.
        """
        evidence = await self._inner.attest(data)
        if evidence.kind is not EvidenceKind.SEV_SNP:
            return evidence
        report = Report.parse(evidence.report)
        if evidence.certificates and _is_good(evidence.certificates, report):
            return evidence
        found, failure = await first_found(report, self._sources)
        if found:
            return replace(evidence, certificates=found)
        if evidence.certificates:
            return evidence  # the verifier reports what does not fit
        raise failure or EndorsementUnavailableError(
            "no source has the certificate of this chip and TCB",
            advice="put the VCEK into the directory, or configure a cache server",
        )


async def first_found(
    report: Report, sources: Iterable[Endorsements]
) -> tuple[tuple[bytes, ...], EndorsementUnavailableError | None]:
    """Return the certificates of the first source that has some; if none has, the last error."""
    failure: EndorsementUnavailableError | None = None
    for source in sources:
        try:
            if found := await source.certificates(report):
                return found, None
        except EndorsementUnavailableError as error:
            failure = error
    return (), failure


class DirectoryEndorsements:
    """Finds certificates in a directory: PEM or DER, any names; read at every request."""

    def __init__(self, directory: Path, *, readers: Threads = threads.ENDORSEMENTS) -> None:
        """Use a directory that has VCEKs, ASKs and ARKs; ``readers`` read it."""
        self._directory = directory
        self._readers = readers

    async def certificates(self, report: Report) -> tuple[bytes, ...]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._readers.run(self._look, report)
        except TimeoutError as error:
            raise EndorsementUnavailableError(
                f"{self._directory} does not answer within {ANSWER_SECONDS:g} s",
                advice="check whether its file system hangs",
            ) from error

    def _look(self, report: Report) -> tuple[bytes, ...]:
        try:
            paths = sorted(
                path for path in self._directory.iterdir() if path.suffix.lower() in _SUFFIXES
            )[:_MAX_FILES]
        except OSError as error:
            raise EndorsementUnavailableError(
                f"{self._directory} cannot be read: {error.strerror}"
            ) from error
        found: list[bytes] = []
        unreadable = ""
        for path in paths:
            try:
                found += _readable(path)
            except OSError as error:  # one file takes nothing from the others
                unreadable = f"{path} cannot be read: {error.strerror}"
        leaves = [der for der in found if fits_report(der, report)]
        if not leaves and unreadable:
            raise EndorsementUnavailableError(unreadable)
        # One that was renewed gives way to the new one, and one that was damaged to one that was
        # not.
        leaves.sort(key=lambda der: read_leaf(der).certificate.not_after, reverse=True)
        chains = [(leaf, *issuers_of(leaf, found)) for leaf in leaves]
        return next((chain for chain in chains if _is_good(chain, report)), (*chains, ())[0])


def vcek_target(product: Product, chip_id: bytes, tcb: Tcb) -> str:
    """Return path and query of a VCEK in the layout of AMD's KDS (57230, section 4.1)."""
    size = TURIN_CHIP_ID_BYTES if product is Product.TURIN else len(chip_id)
    versions = {
        _QUERY[component]: f"{version:02}" for component, version in tcb.components(product).items()
    }
    return f"/vcek/v1/{product.certificate_name}/{chip_id[:size].hex()}?{urlencode(versions)}"


def is_vcek_target(text: str) -> bool:
    """Say whether a text is what :func:`vcek_target` gives for some chip and TCB."""
    found = _TARGET.fullmatch(text)
    if found is None:
        return False
    product, chip = Product(found[1].lower()), bytes.fromhex(found[2]).ljust(CHIP_ID_BYTES, b"\0")
    given = dict(parse_qsl(found[3]))
    raw = bytearray(8)
    for component, index in TCB_COMPONENTS[product].items():
        version = given.get(_QUERY[component], "")
        if not _VERSION.fullmatch(version) or int(version) > 0xFF:  # noqa: PLR2004  a byte
            return False
        raw[index] = int(version)
    return vcek_target(product, chip, Tcb(bytes(raw))) == text


def _leaf(der: bytes) -> Leaf | None:
    try:
        return read_leaf(der)
    except EvidenceError:
        return None


def fits_report(der: bytes, report: Report) -> bool:
    """Say whether this is a leaf for the report's kind of key, chip and reported TCB."""
    leaf = _leaf(der)
    return (
        leaf is not None
        and leaf.kind == report.signing_key
        and leaf.tcb == report.reported_tcb.raw
        and leaf.hardware_id in {None, report.chip_id}
    )


def _is_good(certificates: Sequence[bytes], report: Report) -> bool:
    """Say whether the first one belongs to a report, as far as those beside it show."""
    leaf, *others = certificates
    if not fits_report(leaf, report):
        return False
    above = issuers_of(leaf, others)
    return not above or hold_together(leaf, above)


def issuers_of(leaf: bytes, found: Iterable[bytes]) -> tuple[bytes, ...]:
    """Return those certificates that may be above a leaf, by name; of very many only the first.

    Args:
        leaf: a VCEK or VLEK in DER, readable.
        found: any certificates in DER; those that cannot be read are left out.
    """
    known = [one for one in map(_certificate, dict.fromkeys(found)) if one is not None]
    above = {Certificate.parse(leaf).issuer}
    above |= {one.issuer for one in known if one.subject in above}
    return tuple(one.der for one in known if one.subject in above)[:_MAX_ISSUERS]


def hold_together(leaf: bytes, issuers: Iterable[bytes]) -> bool:
    """Say whether an issuer signed the leaf, and those that have their own issuer here are signed.

    What was damaged on its way has the right fields, and would be kept for as long as they are.

    Args:
        leaf: a VCEK or VLEK in DER, readable.
        issuers: the certificates above it, readable.
    """
    above = list(map(Certificate.parse, issuers))
    if not any(Certificate.parse(leaf).signed_by(one) for one in above):
        return False
    return all(_is_signed(one, above) for one in above)


def _is_signed(certificate: Certificate, above: Iterable[Certificate]) -> bool:
    named = [one for one in above if one.subject == certificate.issuer]
    return not named or any(certificate.signed_by(one) for one in named)


def _certificate(der: bytes) -> Certificate | None:
    try:
        return Certificate.parse(der)
    except EvidenceError:
        return None


def _readable(path: Path) -> tuple[bytes, ...]:
    content = read_file(path, max_bytes=MAX_ANSWER_BYTES)
    try:
        return der_certificates(content, what=path.name)
    except EvidenceError:
        return ()
