"""Verification and appraisal of TDX quotes (Intel TDX DCAP; TDX module ABI; PCCS API 4).

Owns the order of the checks. Invariants: claims are made only from a quote that passed every check;
a quote without collateral, or whose issuers have no current revocation list, is refused after every
other check ran.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.attestation.evidence import Claims, EvidenceKind
from sds.attestation.examiner import KindExaminer
from sds.attestation.exchange_key.events import check_exchange_key
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.tdx.appraisal import appraise_platform, appraise_td
from sds.attestation.tdx.authenticity import (
    check_form,
    check_quote_signature,
    check_signature,
)
from sds.attestation.tdx.chain import (
    PCK_CHAIN,
    TCB_SIGNING_CHAIN,
    IntelChain,
    common_name,
    link_chain,
    root_digest,
)
from sds.attestation.tdx.claims import claims_of_quote
from sds.attestation.tdx.collateral_checks import Platform, check_collateral
from sds.attestation.tdx.material import Material, material_now
from sds.attestation.tdx.pck import Pck, read_pck
from sds.attestation.tdx.quote import Quote, parse_quote
from sds.attestation.tdx.revocation import check_revocation
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from pathlib import Path

    from sds.attestation.checks import Checks
    from sds.attestation.evidence import Evidence, ReportData
    from sds.attestation.tdx.tcb import TcbLevel

_QUOTE: Final = "a TDX quote, v4 or v5"
_REVOCATION: Final = "a current list of each issuer, and nothing revoked"


class TdxVerifier(KindExaminer):
    """Verifies and appraises TDX quotes.

    Args:
        values: the reference values; the strict defaults if None.
        trusted_roots: roots beside Intel's in DER; claims under them say *simulated*.
        collateral: the folder that is read at every verification.
        material: gives collateral and lists; used instead of the folder.

    Raises:
        EvidenceError: a configured root cannot be read.
    """

    def __init__(
        self,
        *,
        values: ReferenceValues | None = None,
        trusted_roots: Iterable[bytes] = (),
        collateral: Path | None = None,
        material: Callable[[], Material] | None = None,
    ) -> None:
        super().__init__(EvidenceKind.TDX)
        self._values = values or ReferenceValues()
        roots = tuple(trusted_roots)
        self._trusted = tuple(map(root_digest, roots))
        self._material = material or (lambda: material_now(collateral, roots=roots))

    def _check(
        self, checks: Checks, evidence: Evidence, data: ReportData | None, now: datetime
    ) -> Claims | None:
        # 1. Layout, version, TEE type, algorithm (DCAP, appendix A.3).
        try:
            quote = parse_quote(evidence.report)
        except EvidenceError as error:
            checks.attempt("quote", error, found=error.message, expected=_QUOTE)
            return None
        checks.attempt("quote", None, found=f"version {quote.version}", expected=_QUOTE)
        # 2. - 3. Vendor, module, reserved bits.
        check_form(checks, quote)
        # 4. - 6. PCK chain, its validity, revocation.
        material = self._material()
        chain, pck = self._check_chain(checks, quote, material, now)
        # 7. The quoting enclave's report, and the attestation key that it vouches for.
        if pck is not None:
            check_signature(
                checks,
                "qe_report_signature",
                key=pck.public_key,
                signature=quote.qe_signature,
                signed=quote.qe_report.raw,
            )
        check_quote_signature(checks, quote)
        # 8. The binding.
        if data is not None:
            checks.add(
                "report_data",
                "report_data_mismatch",
                ok=quote.body.report_data == data,
                found=quote.body.report_data.hex,
                expected=data.hex,
                advice="it was made for another request, or relayed",
            )
        # Check who in the guest asked: the holder of the key that RTMR3 shows.
        keyed = check_exchange_key(
            checks,
            evidence.proof,
            register=quote.body.rtmr[3],
            report_data=quote.body.report_data,
            algorithm="sha384",
            required=self._values.tdx.require_exchange_key,
        )
        # 9. - 13. Appraisal of TD and platform.
        appraise_td(checks, quote, self._values)
        if pck is not None:
            appraise_platform(checks, pck, self._values.tdx)
        # 14. - 19. Collateral.
        levels: dict[str, TcbLevel] = {}
        if pck is not None:
            levels = self._check_collateral(checks, quote, pck, material, now)
        return Claims(
            kind=EvidenceKind.TDX,
            measurement=quote.body.mrtd.hex(),
            simulated=chain is not None and chain.simulated,
            attributes=claims_of_quote(quote, pck, levels) | keyed,
        )

    def _check_chain(
        self, checks: Checks, quote: Quote, material: Material, now: datetime
    ) -> tuple[IntelChain | None, Pck | None]:
        # 4. PCK chain to the pinned root (PCK profile, section 1.3).
        expected = "PCK, its issuer and the pinned Intel SGX root"
        try:
            chain = link_chain(
                quote.pck_chain, names=PCK_CHAIN, trusted=self._trusted, what="PCK chain"
            )
            pck = read_pck(chain.leaf)
        except EvidenceError as error:
            checks.attempt("pck_chain", error, found=error.message, expected=expected)
            return None, None
        checks.attempt(
            "pck_chain",
            None,
            found=f"FMSPC {pck.fmspc.hex()}" + (" (configured root)" if chain.simulated else ""),
            expected=expected,
        )
        # 5. Validity at the time.
        _check_validity(checks, chain, now)
        # 6. Revocation (QVL, step 4.1.2.5.7).
        self._check_revocation(checks, "revocation", chain, material, now)
        return chain, pck

    def _check_collateral(
        self, checks: Checks, quote: Quote, pck: Pck, material: Material, now: datetime
    ) -> dict[str, TcbLevel]:
        # 14. There is collateral, and a TCB signing chain to the pinned root.
        collateral = material.collateral
        if collateral is None:
            missing = material.collateral_error or EvidenceError(
                "there is no collateral", reason="collateral_missing"
            )
            checks.attempt(
                "collateral",
                missing,
                found=missing.message,
                expected="TCB info and QE identity, signed by Intel",
            )
            return {}
        expected = "TCB signing certificate and the pinned Intel SGX root"
        try:
            signer = link_chain(
                collateral.signing_chain,
                names=TCB_SIGNING_CHAIN,
                trusted=self._trusted,
                what="TCB signing chain",
            )
        except EvidenceError as error:
            checks.attempt("collateral_chain", error, found=error.message, expected=expected)
            return {}
        checks.attempt("collateral_chain", None, found="valid", expected=expected)
        _check_validity(checks, signer, now)
        self._check_revocation(checks, "collateral_revocation", signer, material, now)
        platform = Platform(quote=quote, pck=pck, signer=signer, values=self._values.tdx, now=now)
        return check_collateral(checks, platform, collateral)

    def _check_revocation(
        self, checks: Checks, name: str, chain: IntelChain, material: Material, now: datetime
    ) -> None:
        if material.nothing:
            # Check 14 refuses the quote for this, so nothing is added here.
            return
        failure: EvidenceError | None = material.lists_error
        found = "not revoked"
        unchecked = not material.lists and self._values.tdx.permit_unchecked_revocation
        if unchecked:
            found = "not checked: no list is given, and the reference values permit that"
        elif failure is None:
            try:
                check_revocation(chain, material.lists, now)
            except EvidenceError as error:
                failure = error
        checks.attempt(
            name, failure, found=failure.message if failure else found, expected=_REVOCATION
        )


def _check_validity(checks: Checks, chain: IntelChain, now: datetime) -> None:
    for certificate in chain.certificates:
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        checks.add(
            "valid_" + common_name(certificate).lower().replace(" ", "_"),
            "certificate_validity",
            ok=start <= now <= end,
            found=lambda start=start, end=end: f"{start:%FT%TZ} to {end:%FT%TZ}",
            expected=lambda: f"valid at {now:%FT%TZ}",
        )
