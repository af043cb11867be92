"""Certificates that the host did not give: from a directory, or a cache server (AMD 57230).

Owns where a VCEK is looked for. Invariants: what is found adds no trust, it only completes
evidence that the other side verifies; what does not belong to the report is not taken; requests,
sizes and times are bounded.
"""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlencode

from sds import threads
from sds.attestation.evidence import EvidenceKind
from sds.attestation.pem import der_certificates
from sds.attestation.snp.leaf import Leaf, read_leaf
from sds.attestation.snp.report import (
    CPUID_VERSION,
    TURIN_CHIP_ID_BYTES,
    Product,
    Report,
    SigningKey,
    product_of_cpuid,
)
from sds.errors import EndorsementUnavailableError, EvidenceError
from sds.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import aiohttp

    from sds.attestation.evidence import Attester, Evidence, ReportData
    from sds.clock import Clock

ATTEMPTS: Final = 4
FIRST_PAUSE_SECONDS: Final = 0.2
TIMEOUT_SECONDS: Final = 10.0
MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_FILES: Final = 1024
_SUFFIXES: Final = frozenset({".cer", ".crt", ".der", ".pem"})
# 57230, section 4.1: the query names a component by these.
_QUERY: Final = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}


class Endorsements(Protocol):
    """Where certificates for a report come from."""

    async def certificates(self, report: Report) -> tuple[bytes, ...]:
        """DER, leaf first, then whatever helps; empty if there is none for this report.

        Raises:
            EndorsementUnavailableError: they cannot be had now.
        """
        ...


class EndorsedAttester:
    """An attester whose SEV-SNP evidence is completed where the host gave no certificates."""

    def __init__(self, inner: Attester, sources: Iterable[Endorsements]) -> None:
        """``sources`` are asked in order."""
        self._inner = inner
        self._sources = tuple(sources)

    async def attest(self, data: ReportData) -> Evidence:
        """As the inner attester; certificates are added, never replaced.

        Raises:
            EvidenceError: as the inner one, or the last source's where none had any.
        """
        evidence = await self._inner.attest(data)
        if evidence.certificates or evidence.kind is not EvidenceKind.SEV_SNP:
            return evidence
        report = Report.parse(evidence.report)
        failure: EvidenceError | None = None
        for source in self._sources:
            try:
                found = await source.certificates(report)
            except EndorsementUnavailableError as error:
                failure = error
                continue
            if found:
                return replace(evidence, certificates=found)
        raise failure or EndorsementUnavailableError(
            "no source has the certificate of this chip and TCB",
            advice="put the VCEK into the directory, or configure a cache server",
        )


class DirectoryEndorsements:
    """Certificates of a directory: PEM or DER, any names; read at every request."""

    def __init__(self, directory: Path) -> None:
        """``directory``: holds VCEKs, ASKs, ARKs."""
        self._directory = directory

    async def certificates(self, report: Report) -> tuple[bytes, ...]:
        return await threads.ENDORSEMENTS.run(self._look, report)

    def _look(self, report: Report) -> tuple[bytes, ...]:
        try:
            paths = sorted(
                path for path in self._directory.iterdir() if path.suffix.lower() in _SUFFIXES
            )[:_MAX_FILES]
            found = [der for path in paths for der in _readable(path)]
        except OSError as error:
            raise EndorsementUnavailableError(
                f"{self._directory} cannot be read: {error.strerror}"
            ) from error
        leaves = [der for der in found if fits_report(der, report)]
        issuers = [der for der in found if _leaf(der) is None]
        return (leaves[0], *issuers) if leaves else ()


class KdsEndorsements:
    """Certificates of a server in the layout of AMD's KDS, most often a cache of one's own."""

    def __init__(self, url: str, clock: Clock, *, product: Product | None = None) -> None:
        """Configure it.

        Args:
            url: everything before ``/vcek/v1/…``.
            clock: for the pauses between attempts.
            product: for reports of version 2, which name none.
        """
        self._url = url.rstrip("/")
        self._clock = clock
        self._product = product
        self._kept: dict[str, bytes] = {}

    async def certificates(self, report: Report) -> tuple[bytes, ...]:
        """See :class:`Endorsements`. A VLEK is the provider's secret service: none comes."""
        import aiohttp  # noqa: PLC0415  6 MB that only those who ask a cache shall hold

        product = self._product_of(report)
        if report.signing_key != SigningKey.VCEK or product is None or not any(report.chip_id):
            return ()
        base = f"/vcek/v1/{product.certificate_name}"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            leaf = await self._get(session, vcek_path(report, product))
            if not fits_report(leaf, report):
                raise EndorsementUnavailableError(
                    f"{self._url} answered with a certificate of another chip or TCB"
                )
            chain = await self._get(session, f"{base}/cert_chain")
        try:
            return (leaf, *der_certificates(chain, what=f"{self._url}{base}/cert_chain"))
        except EvidenceError as error:
            raise EndorsementUnavailableError(error.message) from error

    def _product_of(self, report: Report) -> Product | None:
        if report.version < CPUID_VERSION:
            return self._product
        try:
            return product_of_cpuid(report.cpuid_family, report.cpuid_model)
        except EvidenceError:
            return None

    async def _get(self, session: aiohttp.ClientSession, path: str) -> bytes:
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                content = await self._ask(session, path)
            except EndorsementUnavailableError:
                if attempt == ATTEMPTS:
                    raise
            else:
                # One leaf and one chain: what an older TCB asked for is not needed again.
                if len(self._kept) >= ATTEMPTS:
                    self._kept.clear()
                self._kept[path] = content
                return content
            await self._clock.sleep(pause)
            pause *= 2
        raise EndorsementUnavailableError("no attempt was made")

    async def _ask(self, session: aiohttp.ClientSession, path: str) -> bytes:
        import aiohttp  # noqa: PLC0415  as above

        what = f"{self._url}{path.partition('?')[0]}"
        try:
            async with session.get(f"{self._url}{path}", allow_redirects=False) as answer:
                content = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while len(content) <= MAX_ANSWER_BYTES and not answer.content.at_eof():
                    content += await answer.content.read(MAX_ANSWER_BYTES + 1)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise EndorsementUnavailableError(f"{what} does not answer: {error!r}") from error
        if answer.status != HTTPStatus.OK or len(content) > MAX_ANSWER_BYTES:
            raise EndorsementUnavailableError(
                f"{what} answered with status {answer.status} and {len(content)} bytes"
            )
        return content


def vcek_path(report: Report, product: Product) -> str:
    """Path and query of a report's VCEK (57230, section 4.1)."""
    size = TURIN_CHIP_ID_BYTES if product is Product.TURIN else len(report.chip_id)
    hardware_id = report.chip_id[:size].hex()
    query = urlencode(
        {
            _QUERY[component]: f"{version:02}"
            for component, version in report.reported_tcb.components(product).items()
        }
    )
    return f"/vcek/v1/{product.certificate_name}/{hardware_id}?{query}"


def _leaf(der: bytes) -> Leaf | None:
    try:
        return read_leaf(der)
    except EvidenceError:
        return None


def fits_report(der: bytes, report: Report) -> bool:
    """Whether this is a leaf for the report's kind of key, chip and reported TCB."""
    leaf = _leaf(der)
    return (
        leaf is not None
        and leaf.kind == report.signing_key
        and leaf.tcb == report.reported_tcb.raw
        and leaf.hardware_id in {None, report.chip_id}
    )


def _readable(path: Path) -> tuple[bytes, ...]:
    content = read_file(path, max_bytes=MAX_ANSWER_BYTES)
    try:
        return der_certificates(content, what=path.name)
    except EvidenceError:
        return ()
