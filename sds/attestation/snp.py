"""Verification of an SEV-SNP attestation report.

Theory of operation: :func:`examine` runs every check that can run, in the order of AMD 56860
(report) and AMD 57230 (VCEK, VLEK), and returns the list; :class:`SnpVerifier` is the port that
raises the first failure. Verification is over the raw bytes: nothing is re-encoded. Authenticity
comes first, then appraisal against the reference values.

Invariant: no claim leaves this module unless the signature over the bytes held under a leaf
whose chain ends in a trusted root.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sds.attestation.appraisal import appraise_snp
from sds.attestation.checks import Checks, Verdict
from sds.attestation.evidence import Claims, Evidence, EvidenceKind
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp_chain import (
    HARDWARE_ID_BYTES,
    Endorsement,
    check_revocation,
    check_validity,
    endorse,
)
from sds.attestation.snp_report import (
    ECDSA_P384_SHA384,
    SIGNED_BYTES,
    Product,
    SigningKey,
    SnpReport,
    parse_report,
    parse_tcb,
)
from sds.errors import (
    EndorsementChipError,
    EndorsementTcbError,
    EvidenceBindingError,
    EvidenceError,
    EvidenceMalformedError,
    EvidenceSignatureError,
    ProductError,
    ReservedBytesError,
    SignatureAlgorithmError,
    SignatureRangeError,
    SigningKeyError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sds.attestation.evidence import ReportData

# SEC 2, section 2.5.1: order of the base point of secp384r1.
P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
_CACHED_CHAINS: Final = 256


def examine(
    evidence: Evidence,
    *,
    data: ReportData | None,
    now: datetime,
    values: ReferenceValues,
    trusted_roots: Sequence[bytes] = (),
    revocation_lists: Sequence[bytes] = (),
    product: Product | None = None,
    endorsement: Endorsement | None = None,
) -> Verdict:
    """Run every check and return the list, whatever fails.

    Args:
        evidence: report, and certificates (DER, leaf first).
        data: the report data that is demanded; None demands none (offline look at a report).
        now: the time at which certificates must be valid, aware.
        values: reference values.
        trusted_roots: DER of roots trusted beside AMD's pinned ones (simulated machines).
        revocation_lists: DER CRLs.
        product: demands this product.
        endorsement: a chain that was verified before from the same certificates.
    """
    checks = Checks()
    # 1. Length and version.
    try:
        report = parse_report(evidence.report)
    except EvidenceMalformedError as error:
        checks.attempt("layout", error, found=error.message, expected="a report of 1184 bytes")
        return Verdict(kind=EvidenceKind.SEV_SNP, checks=tuple(checks.done), claims=None)
    checks.attempt("layout", None, found=f"version {report.version}", expected="version 2 to 5")
    # 2. Reserved bytes and bits.
    _check_reserved(checks, report)
    # 3. Signature algorithm; 4. R and S in range.
    _check_signature_form(checks, report)
    # 5. Chain of the signing key to a trusted root; 6. its validity; 7. revocation.
    endorsement = _check_chain(
        checks,
        evidence,
        now,
        trusted_roots=trusted_roots,
        revocation_lists=revocation_lists,
        endorsement=endorsement,
    )
    # 8. Product of report and chain.
    found_product = _check_product(checks, report, endorsement, product)
    # 9. The kind of leaf; 10. its TCB; 11. its chip.
    if endorsement is not None:
        _check_leaf(checks, report, endorsement)
    # 12. Reserved bytes of the TCBs, whose layout is the product's.
    if found_product is not None:
        _check_tcb_layout(checks, report, found_product)
    # 13. The signature over the raw bytes.
    if endorsement is not None:
        _check_signature(checks, report, endorsement)
    # 14. The binding to what was demanded.
    if data is not None:
        checks.add(
            "report_data",
            EvidenceBindingError,
            ok=report.report_data == data,
            found=report.report_data.hex(),
            expected=data.hex(),
        )
    # 15. Appraisal.
    leaf = endorsement.leaf if endorsement is not None else None
    appraise_snp(checks, report, values, product=found_product, leaf=leaf)
    simulated = endorsement is not None and endorsement.simulated
    return Verdict(
        kind=EvidenceKind.SEV_SNP,
        checks=tuple(checks.done),
        claims=claims_of(report, found_product, endorsement, simulated=simulated),
    )


def claims_of(
    report: SnpReport,
    product: Product | None,
    endorsement: Endorsement | None,
    *,
    simulated: bool,
) -> Claims:
    """What the report says, by the names of ``docs/attestation.md``."""
    attributes = {
        "version": str(report.version),
        "product": product or "unknown",
        "vmpl": str(report.vmpl),
        "guest_svn": str(report.guest_svn),
        "policy": f"0x{report.policy.raw:x}",
        "platform_info": f"0x{report.platform_info.raw:x}",
        "signing_key": _signing_key_name(report.signing_key),
        "report_data": report.report_data.hex(),
        "host_data": report.host_data.hex(),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "chip_id": report.chip_id.hex(),
        "current_version": ".".join(str(part) for part in report.current_version),
        "committed_version": ".".join(str(part) for part in report.committed_version),
    }
    for name, raw in (
        ("current_tcb", report.current_tcb),
        ("reported_tcb", report.reported_tcb),
        ("committed_tcb", report.committed_tcb),
        ("launch_tcb", report.launch_tcb),
    ):
        attributes[name] = str(parse_tcb(raw, product)) if product is not None else raw.hex()
    if endorsement is not None and endorsement.leaf.csp_id:
        attributes["csp_id"] = endorsement.leaf.csp_id
    return Claims(
        kind=EvidenceKind.SEV_SNP,
        measurement=report.measurement.hex(),
        simulated=simulated,
        attributes=attributes,
    )


def _signing_key_name(value: int) -> str:
    try:
        return SigningKey(value).name.lower()
    except ValueError:
        return f"reserved ({value})"


def _check_reserved(checks: Checks, report: SnpReport) -> None:
    for span, content in report.reserved_regions().items():
        checks.add(
            f"reserved_{span}",
            ReservedBytesError,
            ok=not any(content),
            found="zero" if not any(content) else content.hex(),
            expected="zero",
        )
    checks.add(
        "policy_reserved",
        ReservedBytesError,
        ok=report.policy.reserved_one and not report.policy.reserved,
        found=f"0x{report.policy.raw:x}",
        expected="bit 17 set, bits 63:26 zero",
    )
    checks.add(
        "key_info_reserved",
        ReservedBytesError,
        ok=not report.key_info >> 5,
        found=f"0x{report.key_info:x}",
        expected="bits 31:5 zero",
    )


def _check_signature_form(checks: Checks, report: SnpReport) -> None:
    checks.add(
        "signature_algorithm",
        SignatureAlgorithmError,
        ok=report.signature_algo == ECDSA_P384_SHA384,
        found=report.signature_algo,
        expected=f"{ECDSA_P384_SHA384} (ECDSA P-384 with SHA-384)",
    )
    for name, number in (("signature_r", report.signature_r), ("signature_s", report.signature_s)):
        checks.add(
            name,
            SignatureRangeError,
            ok=0 < number < P384_ORDER,
            found=f"0x{number:x}",
            expected="from 1 to the order of P-384 less 1",
        )


def _check_chain(
    checks: Checks,
    evidence: Evidence,
    now: datetime,
    *,
    trusted_roots: Sequence[bytes],
    revocation_lists: Sequence[bytes],
    endorsement: Endorsement | None,
) -> Endorsement | None:
    if endorsement is None:
        try:
            endorsement = endorse(evidence.certificates, trusted_roots=trusted_roots)
        except EvidenceError as error:
            checks.attempt(
                "chain", error, found=error.message, expected="a chain to a trusted root"
            )
            return None
    root = "a configured root" if endorsement.simulated else "AMD's root"
    checks.attempt(
        "chain",
        None,
        found=f"{endorsement.leaf.kind} of {endorsement.leaf.product} under {root}",
        expected="a chain to a trusted root",
    )
    _check_time(checks, endorsement, now)
    _check_revocation(checks, endorsement, revocation_lists, now)
    return endorsement


def _check_time(checks: Checks, endorsement: Endorsement, now: datetime) -> None:
    expected = f"valid at {now.isoformat()}"
    try:
        check_validity(endorsement, now)
    except EvidenceError as error:
        checks.attempt("chain_validity", error, found=error.message, expected=expected)
    else:
        checks.attempt("chain_validity", None, found="valid", expected=expected)


def _check_revocation(
    checks: Checks, endorsement: Endorsement, lists: Sequence[bytes], now: datetime
) -> None:
    try:
        check_revocation(endorsement, lists, now)
    except EvidenceError as error:
        checks.attempt("chain_revocation", error, found=error.message, expected="not revoked")
    else:
        found = f"on none of {len(lists)} lists"
        checks.attempt("chain_revocation", None, found=found, expected="not revoked")


def _check_product(
    checks: Checks,
    report: SnpReport,
    endorsement: Endorsement | None,
    demanded: Product | None,
) -> Product | None:
    """Version 3 and later name the product by CPUID; for version 2 it is the chain's."""
    by_chain = endorsement.product if endorsement is not None else None
    by_report = report.product_by_cpuid
    found = by_report if report.cpuid is not None else by_chain
    if report.cpuid is not None:
        family, model, _ = report.cpuid
        checks.add(
            "product",
            ProductError,
            ok=by_report is not None and by_chain in (None, by_report),
            found=f"{by_report or 'unknown'} (family 0x{family:x}, model 0x{model:x})",
            expected=by_chain or "a known product",
        )
    if demanded is not None:
        checks.add(
            "product_demanded",
            ProductError,
            ok=found is demanded,
            found=found or "unknown",
            expected=demanded,
        )
    return found or demanded


def _check_leaf(checks: Checks, report: SnpReport, endorsement: Endorsement) -> None:
    leaf = endorsement.leaf
    checks.add(
        "signing_key",
        SigningKeyError,
        ok=_signing_key_name(report.signing_key) == leaf.kind.lower(),
        found=_signing_key_name(report.signing_key),
        expected=leaf.kind.lower(),
    )
    reported = parse_tcb(report.reported_tcb, leaf.product)
    checks.add(
        "leaf_tcb",
        EndorsementTcbError,
        ok=reported == leaf.tcb,
        found=leaf.tcb,
        expected=f"REPORTED_TCB {reported}",
    )
    if leaf.kind == "VCEK":
        size = HARDWARE_ID_BYTES[leaf.product]
        checks.add(
            "leaf_hardware_id",
            EndorsementChipError,
            ok=report.chip_id == leaf.hardware_id.ljust(len(report.chip_id), b"\0")
            and any(report.chip_id),
            found=leaf.hardware_id.hex(),
            expected=f"CHIP_ID {report.chip_id[:size].hex()}, not zero, the rest of it zero",
        )


def _check_tcb_layout(checks: Checks, report: SnpReport, product: Product) -> None:
    for name, raw in (
        ("current_tcb", report.current_tcb),
        ("reported_tcb", report.reported_tcb),
        ("committed_tcb", report.committed_tcb),
        ("launch_tcb", report.launch_tcb),
    ):
        reserved = parse_tcb(raw, product).reserved
        checks.add(
            f"{name}_reserved",
            ReservedBytesError,
            ok=not any(reserved),
            found=reserved.hex(),
            expected="zero",
        )


def _check_signature(checks: Checks, report: SnpReport, endorsement: Endorsement) -> None:
    error: EvidenceError | None = None
    try:
        signature = encode_dss_signature(report.signature_r, report.signature_s)
        endorsement.leaf.public_key.verify(
            signature, report.raw[:SIGNED_BYTES], ec.ECDSA(hashes.SHA384())
        )
    except (InvalidSignature, ValueError):
        error = EvidenceSignatureError(
            f"the report's signature does not hold under the {endorsement.leaf.kind}'s key",
            advice="the report was altered, or is of another chip or TCB than the certificate",
        )
    checks.attempt(
        "signature",
        error,
        found="holds" if error is None else "does not hold",
        expected=f"ECDSA P-384 by the {endorsement.leaf.kind} over bytes 0x0 to 0x29f",
    )


class SnpVerifier:
    """The :class:`sds.attestation.evidence.Verifier` of SEV-SNP reports.

    Keeps chains that were verified (by the hash of exactly the same certificates), since their
    three RSA-4096 signatures never change; validity and revocation are checked every time.

    Args:
        values: reference values.
        trusted_roots: DER of roots trusted beside AMD's: evidence under them is *simulated*.
        revocation_lists: DER CRLs, checked against every chain.
        certificates: DER certificates added behind those of the evidence (ASK, ARK).
    """

    def __init__(
        self,
        *,
        values: ReferenceValues | None = None,
        trusted_roots: Sequence[bytes] = (),
        revocation_lists: Sequence[bytes] = (),
        certificates: Sequence[bytes] = (),
    ) -> None:
        """See the class."""
        self._values = values or ReferenceValues()
        self._trusted_roots = tuple(trusted_roots)
        self._revocation_lists = tuple(revocation_lists)
        self._certificates = tuple(certificates)
        self._chains: dict[bytes, Endorsement] = {}

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        """Verify and appraise one report.

        Raises:
            EvidenceError: the first check that failed.
        """
        return self.examine(evidence, data=data, now=now).claims_or_raise()

    def examine(self, evidence: Evidence, *, data: ReportData | None, now: datetime) -> Verdict:
        """All checks of one report, as a list."""
        given = (*evidence.certificates, *self._certificates)
        key = hashlib.sha256(b"".join(hashlib.sha256(der).digest() for der in given)).digest()
        endorsement = self._chains.get(key)
        if endorsement is None and given:
            try:
                endorsement = endorse(given, trusted_roots=self._trusted_roots)
            except EvidenceError:
                endorsement = None  # examine() finds the same error again and lists it
            else:
                if len(self._chains) >= _CACHED_CHAINS:
                    self._chains.pop(next(iter(self._chains)))
                self._chains[key] = endorsement
        return examine(
            Evidence(kind=evidence.kind, report=evidence.report, certificates=given),
            data=data,
            now=now,
            values=self._values,
            trusted_roots=self._trusted_roots,
            revocation_lists=self._revocation_lists,
            endorsement=endorsement,
        )
