"""Checks who signed a TDX quote: quoting enclave, attestation key, and fields that Intel sets.

Owns the checks over the quote's own bytes (Intel TDX DCAP, appendix A.3; TDX module ABI).
Invariant: nothing here decides whether the TD is accepted; ``tdx.appraisal`` does that.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sds.attestation.tdx.quote import INTEL_QE_VENDOR, Quote, require_known_attributes
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from sds.attestation.checks import Checks

P256_ORDER: Final = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_SGX_DEBUG: Final = 2


def check_form(checks: Checks, quote: Quote) -> None:
    """Add checks 2 and 3: the enclave's vendor, the module's fields, reserved bits."""
    # 2. The quoting enclave's vendor, the module's own fields (TDX module ABI, TDREPORT).
    checks.add(
        "qe_vendor",
        "quoting_enclave",
        ok=quote.vendor == INTEL_QE_VENDOR,
        found=quote.vendor.hex(),
        expected=INTEL_QE_VENDOR.hex(),
    )
    checks.add(
        "seam_attributes",
        "tdx_module",
        ok=not any(quote.body.seam_attributes),
        found=quote.body.seam_attributes.hex(),
        expected="zero",
    )
    # 3. Reserved bits of ATTRIBUTES.
    failure: EvidenceError | None = None
    try:
        require_known_attributes(quote.body)
    except EvidenceError as error:
        failure = error
    checks.attempt(
        "attributes_reserved",
        failure,
        found=f"{quote.body.attributes:#018x}",
        expected="no reserved bit",
    )


def check_quote_signature(checks: Checks, quote: Quote) -> None:
    """Add check 7: the enclave's report vouches for the attestation key, which signed the quote."""
    # 7. The quoting enclave's report vouches for the attestation key, which signed the quote.
    bound = hashlib.sha256(quote.attestation_key + quote.authentication).digest().ljust(64, b"\0")
    checks.add(
        "qe_report_data",
        "quoting_enclave",
        ok=quote.qe_report.report_data == bound,
        found=quote.qe_report.report_data.hex,
        expected=bound.hex,
    )
    checks.add(
        "qe_debug",
        "quoting_enclave",
        ok=not quote.qe_report.attributes[0] & _SGX_DEBUG,
        found=quote.qe_report.attributes.hex(),
        expected="DEBUG clear",
    )
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(
            ec.SECP256R1(), b"\x04" + quote.attestation_key
        )
    except ValueError:
        checks.add(
            "quote_signature",
            "signature_invalid",
            ok=False,
            found="the attestation key is not a point on P-256",
            expected="a valid signature",
        )
        return
    check_signature(
        checks, "quote_signature", key=key, signature=quote.signature, signed=quote.signed
    )


def check_signature(
    checks: Checks,
    name: str,
    *,
    key: ec.EllipticCurvePublicKey,
    signature: bytes,
    signed: bytes,
) -> None:
    """Add a check that this P-256 key made the signature (R and S, big-endian) over ``signed``."""
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    in_range = 0 < r < P256_ORDER and 0 < s < P256_ORDER
    holds = in_range
    if in_range:
        try:
            key.verify(encode_dss_signature(r, s), signed, _ECDSA)
        except InvalidSignature:
            holds = False
    checks.add(
        name,
        "signature_invalid" if in_range else "signature_range",
        ok=holds,
        found="valid" if holds else "invalid" if in_range else "R or S out of range",
        expected="ECDSA P-256 with SHA-256",
    )
