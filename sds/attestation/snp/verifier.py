"""Verification of SEV-SNP reports (AMD 56860, ABI; 57230, VCEK and KDS).

Owns authenticity: the numbered checks over the raw bytes, in the order of the documents; then
:mod:`sds.attestation.snp.appraisal` says what is accepted. Invariant: claims are made only of a
report for which every check held.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sds.attestation.checks import Checks, Verdict
from sds.attestation.evidence import REPORT_DATA_BYTES, Claims, EvidenceKind
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.appraisal import Endorsed, appraise_snp
from sds.attestation.snp.chain import Chain, Roots, link, pinned_roots
from sds.attestation.snp.leaf import Leaf, describe_components, read_leaf
from sds.attestation.snp.report import (
    ALGORITHM_ECDSA_P384_SHA384,
    CPUID_VERSION,
    KEY_INFO_KNOWN,
    KNOWN_VERSIONS,
    PLATFORM_KNOWN,
    POLICY_KNOWN,
    REPORT_BYTES,
    GuestPolicy,
    Product,
    Report,
    SigningKey,
    product_of_cpuid,
)
from sds.attestation.snp.revocation import check_revocation, read_amd_list
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from sds.attestation.evidence import Evidence, ReportData
    from sds.attestation.revocation import RevocationList

# The order of P-384 (SEC 2, section 2.5.1): R and S lie between 1 and this, exclusive.
P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
_ECDSA: Final = ec.ECDSA(hashes.SHA384())
_CACHED_CHAINS: Final = 256
_LEAF: Final = "a VCEK or VLEK as AMD 57230 says"
_CHAIN: Final = "a chain to a pinned ARK"
_REVOCATION: Final = "not revoked by a current list of the ARK"
_UNCHECKED: Final = "not checked: no revocation list is given, and the reference values permit that"
_PRODUCTS: Final = "Milan, Genoa or Turin"
_KEY_NAMES: Final = {0: "VCEK", 1: "VLEK", 7: "none"}


class SnpVerifier:
    """Verifies and appraises SEV-SNP evidence; keeps chains that held."""

    def __init__(
        self,
        *,
        values: ReferenceValues | None = None,
        trusted_roots: Iterable[bytes] = (),
        revocation_lists: Iterable[bytes] = (),
        lists: Callable[[], tuple[RevocationList, ...]] | None = None,
        certificates: Iterable[bytes] = (),
        product: Product | None = None,
    ) -> None:
        """Configure it.

        Args:
            values: what is accepted; the strict defaults where None.
            trusted_roots: DER of roots beside AMD's: simulated machines. Their claims say so.
            revocation_lists: DER, in force at every verification.
            lists: in place of ``revocation_lists``: those that are at hand, read already.
            certificates: DER of ASKs, ASVKs and ARKs that evidence may come without; they add no
                trust.
            product: the only product that is expected, or None.

        Raises:
            EvidenceError: a configured certificate or list cannot be read.
        """
        self._values = values or ReferenceValues()
        self._roots: Roots = pinned_roots(trusted_roots=trusted_roots, helpers=certificates)
        given = tuple(read_amd_list(der, issuers=None) for der in revocation_lists)
        self._lists = lists or (lambda: given)
        self._product = product
        # Only what held is kept (an exception is never cached), and nothing about time.
        self._read_leaf = functools.lru_cache(_CACHED_CHAINS)(read_leaf)
        self._link = functools.lru_cache(_CACHED_CHAINS)(self._linked)

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        return self.examine(evidence, data=data, now=now).claims_or_raise()

    def examine(self, evidence: Evidence, *, data: ReportData | None, now: datetime) -> Verdict:
        """Run every check that can run, in the order of the documents.

        Args:
            evidence: the evidence.
            data: the report data that is demanded; None demands none.
            now: the time at which certificates and lists must count.
        """
        checks = Checks()
        claims = self._check(checks, evidence, data=data, now=now)
        return Verdict(kind=EvidenceKind.SEV_SNP, checks=tuple(checks.done), claims=claims)

    def _check(
        self, checks: Checks, evidence: Evidence, *, data: bytes | None, now: datetime
    ) -> Claims | None:
        if not checks.add(
            "kind",
            "evidence_kind",
            ok=evidence.kind is EvidenceKind.SEV_SNP,
            found=evidence.kind,
            expected=EvidenceKind.SEV_SNP,
        ):
            return None
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
        _check_form(checks, report)
        named = _check_processor(checks, report)
        # 9. - 12. The chain.
        leaf, chain = self._check_chain(checks, evidence, now)
        # 13. - 18. Report against certificate.
        product = self._check_product(checks, report, named, leaf)
        if product is not None:
            _check_reserved_tcb(checks, report, product)
        if leaf is not None:
            _check_leaf(checks, report, leaf)
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
            leaf = self._read_leaf(der)
        except EvidenceError as error:
            checks.attempt("leaf_content", error, found=error.message, expected=_LEAF)
            return None, None
        checks.attempt(
            "leaf_content",
            None,
            found=f"{_KEY_NAMES[leaf.kind]} for {leaf.product.certificate_name}",
            expected=_LEAF,
        )
        # 10. The chain to a pinned root (section 2).
        try:
            chain = self._link(der, tuple(others))
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
                found=f"{certificate.not_before:%FT%TZ} to {certificate.not_after:%FT%TZ}",
                expected=f"valid at {now:%FT%TZ}",
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
        # 13. One product: of report (version 3), chain, and what the caller expects.
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

    def _linked(self, der: bytes, others: tuple[bytes, ...]) -> Chain:
        return link(self._read_leaf(der), others, self._roots)


def _check_form(checks: Checks, report: Report) -> None:
    # 2. Version.
    checks.add(
        "version",
        "report_version",
        ok=report.version in KNOWN_VERSIONS,
        found=str(report.version),
        expected=f"{KNOWN_VERSIONS.start} to {KNOWN_VERSIONS.stop - 1}",
        advice=_version_advice(report.version),
    )
    # 3. Reserved bytes and bits (table 23; tables 9 and 24; KEY_INFO).
    set_spans = [name for name, span in report.reserved_spans().items() if any(span)]
    for name, value, known in (
        ("POLICY", report.policy, POLICY_KNOWN),
        ("PLATFORM_INFO", report.platform_info, PLATFORM_KNOWN),
        ("KEY_INFO", report.key_info, KEY_INFO_KNOWN),
    ):
        if value & ~known:
            set_spans.append(f"{name} bits {value & ~known:#x}")
    checks.add(
        "reserved_zero",
        "reserved_bytes",
        ok=not set_spans,
        found="zero" if not set_spans else f"set: {', '.join(set_spans)}",
        expected="zero",
    )
    checks.add(
        "policy_bit_17",
        "reserved_bytes",
        ok=bool(report.policy & GuestPolicy.RESERVED_ONE),
        found=f"{report.policy:#x}",
        expected="bit 17 set",
    )
    # 4. Algorithm (table 139: 1 is ECDSA P-384 with SHA-384).
    checks.add(
        "signature_algorithm",
        "signature_algorithm",
        ok=report.signature_algorithm == ALGORITHM_ECDSA_P384_SHA384,
        found=str(report.signature_algorithm),
        expected=f"{ALGORITHM_ECDSA_P384_SHA384} (ECDSA P-384 with SHA-384)",
    )
    # 5. A masked chip key signs nothing (SNP_CONFIG, MASK_CHIP_KEY).
    checks.add(
        "chip_key",
        "masked_chip_key",
        ok=not report.chip_key_masked,
        found="masked" if report.chip_key_masked else "not masked",
        expected="not masked",
    )
    # 6. Range of R and S (FIPS 186-5, section 6.4.2).
    r, s = report.signature
    checks.add(
        "signature_range",
        "signature_range",
        ok=0 < r < P384_ORDER and 0 < s < P384_ORDER,
        found=lambda: f"R {_range(r)}, S {_range(s)}",
        expected="R and S from 1 to n-1",
    )
    # 7. SIGNING_KEY names a key.
    checks.add(
        "signing_key_known",
        "signing_key_mismatch",
        ok=report.signing_key in {SigningKey.VCEK, SigningKey.VLEK},
        found=_KEY_NAMES.get(report.signing_key, str(report.signing_key)),
        expected="VCEK or VLEK",
    )


def _version_advice(version: int) -> str:
    if version in KNOWN_VERSIONS:
        return ""
    if version >= KNOWN_VERSIONS.stop:
        return (
            "this firmware is newer than this release: upgrade attested-sds where the evidence is "
            "verified"
        )
    return "update the host's SEV firmware"


def _check_processor(checks: Checks, report: Report) -> Product | None:
    # 8. The processor, from version 3.
    if report.version < CPUID_VERSION or report.version not in KNOWN_VERSIONS:
        return None
    try:
        product = product_of_cpuid(report.cpuid_family, report.cpuid_model)
    except EvidenceError as error:
        checks.attempt("processor", error, found=error.message, expected=_PRODUCTS)
        return None
    checks.attempt(
        "processor",
        None,
        found=lambda: (
            f"{product} (family {report.cpuid_family:#x}, model {report.cpuid_model:#x}, "
            f"stepping {report.cpuid_stepping})"
        ),
        expected=_PRODUCTS,
    )
    return product


def _check_reserved_tcb(checks: Checks, report: Report, product: Product) -> None:
    # 14. Reserved components of every TCB_VERSION (table 3, in the product's layout).
    tcbs = {
        "current": report.current_tcb,
        "reported": report.reported_tcb,
        "committed": report.committed_tcb,
        "launch": report.launch_tcb,
    }
    wrong = [name for name, tcb in tcbs.items() if any(tcb.reserved(product))]
    checks.add(
        "tcb_reserved_zero",
        "reserved_bytes",
        ok=not wrong,
        found=lambda: ", ".join(f"{name} {tcbs[name].raw.hex()}" for name in wrong) or "zero",
        expected=f"zero where {product.certificate_name} has no component",
    )


def _check_leaf(checks: Checks, report: Report, leaf: Leaf) -> None:
    # 15. The TCB that the certificate is for (57230, section 3.1).
    checks.add(
        "leaf_tcb",
        "endorsement_tcb_mismatch",
        ok=leaf.tcb == report.reported_tcb.raw,
        found=lambda: describe_components(report.reported_tcb.raw, leaf.product),
        expected=lambda: describe_components(leaf.tcb, leaf.product),
        advice="fetch the certificate of the reported TCB",
    )
    # 16. The chip of a VCEK (57230, section 3.1; Turin: eight bytes, then zeros).
    if leaf.hardware_id is not None:
        checks.add(
            "chip_id",
            "endorsement_chip_mismatch",
            ok=leaf.hardware_id == report.chip_id,
            found=report.chip_id.hex,
            expected=leaf.hardware_id.hex(),
            advice="a masked CHIP_ID (zeros) cannot be compared" if not any(report.chip_id) else "",
        )
    # 17. The kind of key that the report names.
    checks.add(
        "signing_key",
        "signing_key_mismatch",
        ok=report.signing_key == leaf.kind,
        found=_KEY_NAMES.get(report.signing_key, str(report.signing_key)),
        expected=_KEY_NAMES[leaf.kind],
    )
    # 18. The signature over bytes 0 to 0x29F.
    holds = _signature_holds(report, leaf.public_key)
    checks.add(
        "report_signature",
        "signature_invalid",
        ok=holds,
        found="holds" if holds else "does not hold",
        expected=f"ECDSA P-384 with SHA-384 by the {_KEY_NAMES[leaf.kind]}",
    )


def _signature_holds(report: Report, key: ec.EllipticCurvePublicKey) -> bool:
    r, s = report.signature
    if not (0 < r < P384_ORDER and 0 < s < P384_ORDER):
        return False
    try:
        key.verify(encode_dss_signature(r, s), report.signed, _ECDSA)
    except InvalidSignature:
        return False
    return True


def _range(value: int) -> str:
    return "0" if not value else "n or above" if value >= P384_ORDER else "in range"


def claims_of(report: Report, leaf: Leaf | None, product: Product | None) -> dict[str, str]:
    """Every field of a report as text, by the names of ``docs/attestation.md``."""
    policy = GuestPolicy(report.policy & ~0xFFFF & POLICY_KNOWN)
    claims = {
        "report_version": str(report.version),
        "product": str(product) if product is not None else "",
        "vmpl": str(report.vmpl),
        "guest_svn": str(report.guest_svn),
        "policy": f"{report.policy:#x}",
        "policy_flags": ",".join(flag.name.lower() for flag in policy if flag.name),
        "debug": _flag(report.policy & GuestPolicy.DEBUG),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "report_data": report.report_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "author_key_enabled": _flag(report.author_key_enabled),
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "report_id": report.report_id.hex(),
        "chip_id": report.chip_id.hex(),
        "platform_info": f"{report.platform_info:#x}",
        "signing_key": _KEY_NAMES.get(report.signing_key, str(report.signing_key)).lower(),
        "current_tcb": report.current_tcb.raw.hex(),
        "reported_tcb": report.reported_tcb.raw.hex(),
        "committed_tcb": report.committed_tcb.raw.hex(),
        "launch_tcb": report.launch_tcb.raw.hex(),
        "current_firmware": ".".join(map(str, report.current_firmware)),
        "committed_firmware": ".".join(map(str, report.committed_firmware)),
    }
    if report.version >= CPUID_VERSION:
        claims["cpuid"] = (
            f"{report.cpuid_family:#04x}/{report.cpuid_model:#04x}/{report.cpuid_stepping:#04x}"
        )
    if report.launch_mitigation or report.current_mitigation:
        claims["launch_mitigations"] = f"{report.launch_mitigation:#x}"
        claims["current_mitigations"] = f"{report.current_mitigation:#x}"
    if leaf is not None and leaf.csp_id is not None:
        claims["csp_id"] = leaf.csp_id
    return claims


def _flag(value: object) -> str:
    return "true" if value else "false"
