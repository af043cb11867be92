"""Checks an SEV-SNP report by itself and against its VCEK or VLEK (AMD 56860, 57230).

Owns the checks over the report's own bytes and against its certificate. Invariant: nothing here
decides whether the guest is accepted; ``snp.appraisal`` does that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sds.attestation.snp.claims import KEY_NAMES
from sds.attestation.snp.report import (
    ALGORITHM_ECDSA_P384_SHA384,
    CPUID_VERSION,
    KEY_INFO_KNOWN,
    KNOWN_VERSIONS,
    PLATFORM_KNOWN,
    POLICY_KNOWN,
    GuestPolicy,
    SigningKey,
    Tcb,
    product_of_cpuid,
)
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from sds.attestation.checks import Checks
    from sds.attestation.snp.leaf import Leaf
    from sds.attestation.snp.report import Product, Report

# The order of P-384 (SEC 2, section 2.5.1): R and S lie between 1 and this, exclusive.
P384_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
_ECDSA: Final = ec.ECDSA(hashes.SHA384())
_PRODUCTS: Final = "Milan, Genoa or Turin"


def check_form(checks: Checks, report: Report) -> None:
    """Add checks 2 to 7, over the bytes of the report alone."""
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
    set_spans = [name for name, span in report.reserved_spans().items() if span.strip(b"\0")]
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
        found=KEY_NAMES.get(report.signing_key, str(report.signing_key)),
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


def check_processor(checks: Checks, report: Report) -> Product | None:
    """Add check 8, and give the product that the report names, or None."""
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


def check_reserved_tcb(checks: Checks, report: Report, product: Product) -> None:
    """Add check 14: bytes of each TCB_VERSION that this product does not use."""
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


def check_leaf(checks: Checks, report: Report, leaf: Leaf) -> None:
    """Add checks 15 to 18: the certificate's TCB, chip and kind, and its signature."""
    # 15. The TCB that the certificate is for (57230, section 3.1).
    checks.add(
        "leaf_tcb",
        "endorsement_tcb_mismatch",
        ok=leaf.tcb == report.reported_tcb.raw,
        found=lambda: report.reported_tcb.describe(leaf.product),
        expected=lambda: Tcb(leaf.tcb).describe(leaf.product),
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
        found=KEY_NAMES.get(report.signing_key, str(report.signing_key)),
        expected=KEY_NAMES[leaf.kind],
    )
    # 18. The signature over bytes 0 to 0x29F.
    holds = _signature_holds(report, leaf.public_key)
    checks.add(
        "report_signature",
        "signature_invalid",
        ok=holds,
        found="valid" if holds else "invalid",
        expected=f"ECDSA P-384 with SHA-384 by the {KEY_NAMES[leaf.kind]}",
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
