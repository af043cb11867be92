"""Verification of SEV-SNP reports (AMD 56860, ABI; 57230, VCEK and KDS).

Owns authenticity: the numbered checks over the raw bytes, in the order of the documents; then
:mod:`sds.attestation.snp.appraisal` decides what is accepted. Invariant: claims are made only from
a report that passed every check.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from sds.attestation.evidence import REPORT_DATA_BYTES, Claims, EvidenceKind
from sds.attestation.examiner import KindExaminer
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.appraisal import Endorsed, appraise_snp
from sds.attestation.snp.authenticity import (
    check_form,
    check_leaf,
    check_processor,
    check_reserved_tcb,
)
from sds.attestation.snp.chain import Chain, Roots, link, pinned_roots
from sds.attestation.snp.claims import KEY_NAMES, claims_of
from sds.attestation.snp.leaf import Leaf, read_leaf
from sds.attestation.snp.report import (
    KNOWN_VERSIONS,
    REPORT_BYTES,
    Product,
    Report,
)
from sds.attestation.snp.revocation import check_revocation
from sds.errors import EvidenceError
from sds.pki.chain import REMEMBERED_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from sds.attestation.checks import Checks
    from sds.attestation.evidence import Evidence, ReportData
    from sds.attestation.revocation import RevocationList

_CACHED_CHAINS: Final = 256
_LEAF: Final = "a VCEK or VLEK as AMD 57230 says"
_CHAIN: Final = "a chain to a pinned ARK"
_REVOCATION: Final = "not revoked by a current list of the ARK"
_UNCHECKED: Final = "not checked: no revocation list is given, and the reference values permit that"


class SnpVerifier(KindExaminer):
    """Verifies and appraises SEV-SNP evidence; caches chains that it verified."""

    def __init__(
        self,
        *,
        values: ReferenceValues | None = None,
        trusted_roots: Iterable[bytes] = (),
        lists: Callable[[], tuple[RevocationList, ...]] = tuple,
        certificates: Iterable[bytes] = (),
        product: Product | None = None,
    ) -> None:
        """Configure it.

        Args:
            values: the reference values; the strict defaults if None.
            trusted_roots: roots beside AMD's in DER, of simulated machines; claims under them say
                so.
            lists: gives the lists in force, already read.
            certificates: ASKs, ASVKs and ARKs in DER that evidence may lack; they add no trust.
            product: the only expected product, or None.

        Raises:
            EvidenceError: a configured certificate cannot be read.
        """
        super().__init__(EvidenceKind.SEV_SNP)
        self._values = values or ReferenceValues()
        self._roots: Roots = pinned_roots(trusted_roots=trusted_roots, helpers=certificates)
        self._lists = lists
        self._product = product
        # Only valid results are cached (never exceptions), nothing about time, and nothing large:
        # anybody has a VCEK that is published, and may send any bytes beside it.
        self._read_leaf = functools.lru_cache(_CACHED_CHAINS)(read_leaf)
        self._link = functools.lru_cache(_CACHED_CHAINS)(self._linked)

    def _check(
        self, checks: Checks, evidence: Evidence, data: ReportData | None, now: datetime
    ) -> Claims | None:
        # 1. Length (56860, table 23).
        if not checks.add(
            "length",
            "report_length",
            ok=len(evidence.report) == REPORT_BYTES,
            found=f"{len(evidence.report)} bytes",
            expected=f"{REPORT_BYTES} bytes",
        ):
            return None
        report = Report.parse(evidence.report)
        # 2. - 8. The report by itself.
        check_form(checks, report)
        named = check_processor(checks, report)
        # 9. - 12. The chain.
        leaf, chain = self._check_chain(checks, evidence, now)
        # 13. - 18. Report against certificate.
        product = self._check_product(checks, report, named, leaf)
        if product is not None:
            check_reserved_tcb(checks, report, product)
        if leaf is not None:
            check_leaf(checks, report, leaf)
        # 19. The binding.
        if data is not None:
            checks.add(
                "report_data",
                "report_data_mismatch",
                ok=len(data) == REPORT_DATA_BYTES and report.report_data == data,
                found=report.report_data.hex,
                expected=data.hex,
                advice="it was made for another request, or relayed",
            )
        endorsed = Endorsed(product=product, csp_id=leaf.csp_id if leaf else None)
        appraise_snp(checks, report, endorsed, self._values)
        return Claims(
            kind=EvidenceKind.SEV_SNP,
            measurement=report.measurement.hex(),
            simulated=chain is not None and chain.simulated,
            attributes=claims_of(report, leaf, product),
        )

    def _check_chain(
        self, checks: Checks, evidence: Evidence, now: datetime
    ) -> tuple[Leaf | None, Chain | None]:
        # 9. The leaf (57230, section 3).
        if not checks.add(
            "leaf_present",
            "endorsement_missing",
            ok=bool(evidence.certificates),
            found="a certificate" if evidence.certificates else "no certificate",
            expected="the VCEK or VLEK that signed the report",
            advice="" if evidence.certificates else "give it with --leaf, or configure a cache",
        ):
            return None, None
        der, *others = evidence.certificates
        try:
            leaf = self._leaf(der)
        except EvidenceError as error:
            checks.attempt("leaf_content", error, found=error.message, expected=_LEAF)
            return None, None
        checks.attempt(
            "leaf_content",
            None,
            found=f"{KEY_NAMES[leaf.kind]} for {leaf.product.certificate_name}",
            expected=_LEAF,
        )
        # 10. The chain to a pinned root (section 2).
        try:
            small = sum(map(len, others)) <= 2 * REMEMBERED_BYTES  # ASK and ARK, or ASVK and ARK
            chain = (self._link if small else self._linked)(der, tuple(others))
        except EvidenceError as error:
            checks.attempt("chain", error, found=error.message, expected=_CHAIN)
            return leaf, None
        checks.attempt(
            "chain",
            None,
            found=lambda: (
                f"{chain.root.common_name} {chain.root.digest}"
                + (" (configured)" if chain.simulated else "")
            ),
            expected=_CHAIN,
        )
        # 11. Validity of each certificate at the time (RFC 5280, section 6.1.3).
        for certificate in chain.certificates:
            checks.add(
                f"valid_{certificate.common_name.lower()}".replace("-", "_"),
                "certificate_validity",
                ok=certificate.not_before <= now <= certificate.not_after,
                found=certificate.validity,
                expected=lambda: f"valid at {now:%FT%TZ}",
            )
        # 12. Revocation.
        self._check_revocation(checks, chain, now)
        return leaf, chain

    def _check_revocation(self, checks: Checks, chain: Chain, now: datetime) -> None:
        try:
            lists = self._lists()
            if not lists and self._values.snp.permit_unchecked_revocation:
                checks.attempt("revocation", None, found=_UNCHECKED, expected=_REVOCATION)
                return
            check_revocation(chain, lists, now)
        except EvidenceError as error:
            checks.attempt("revocation", error, found=error.message, expected=_REVOCATION)
        else:
            checks.attempt("revocation", None, found="not revoked", expected=_REVOCATION)

    def _check_product(
        self, checks: Checks, report: Report, named: Product | None, leaf: Leaf | None
    ) -> Product | None:
        # 13. One product: that of the report (version 3), of the chain, and of the caller.
        found = {
            product for product in (named, leaf.product if leaf else None) if product is not None
        }
        wanted = {self._product} if self._product is not None else found
        said = f"report {named or 'says none'}, certificate {leaf.product if leaf else 'none'}"
        holds = len(found | wanted) <= 1
        checks.add(
            "product",
            "product_mismatch",
            ok=holds,
            found=said,
            expected=self._product or "the same in report and certificate",
        )
        if not holds or report.version not in KNOWN_VERSIONS:
            return None
        return next(iter(found | wanted), None)

    def _leaf(self, der: bytes) -> Leaf:
        return (self._read_leaf if len(der) <= REMEMBERED_BYTES else read_leaf)(der)

    def _linked(self, der: bytes, others: tuple[bytes, ...]) -> Chain:
        return link(self._leaf(der), others, self._roots)
