"""Which kind of evidence raw bytes are, and what they say, for files that do not tell.

Owns the guess. Invariant: it decides only which verifier refuses or accepts the bytes; on the
wire the kind is named.
"""

from __future__ import annotations

from typing import Final

from sds.attestation.evidence import EvidenceKind
from sds.attestation.snp.report import (
    CPUID_VERSION,
    REPORT_BYTES,
    Product,
    Report,
    product_of_cpuid,
)
from sds.attestation.snp.verifier import claims_of
from sds.attestation.tdx.claims import claims_of_quote
from sds.attestation.tdx.quote import TEE_TYPE_TDX, parse_quote
from sds.errors import EvidenceError

_HCL_MAGIC: Final = b"HCLA"
_HCL_REPORT_OFFSET: Final = 0x20


def kind_of(raw: bytes) -> EvidenceKind:
    """TDX where the header names that TEE, SEV-SNP for anything else."""
    # An SNP report of version 4 begins as a quote of version 4; offset 4 holds GUEST_SVN there,
    # and a report has a length of its own.
    tee = int.from_bytes(raw[4:8], "little")
    if len(raw) != REPORT_BYTES and tee == TEE_TYPE_TDX:
        return EvidenceKind.TDX
    return EvidenceKind.SEV_SNP


def claims_of_bytes(raw: bytes) -> tuple[EvidenceKind, dict[str, str]]:
    """The kind, and every field as text; nothing is verified.

    A report inside the blob of an Azure paravisor (HCL) is found too.

    Raises:
        EvidenceError: it can be laid out as neither.
    """
    if raw.startswith(_HCL_MAGIC):
        raw = raw[_HCL_REPORT_OFFSET : _HCL_REPORT_OFFSET + REPORT_BYTES]
    if kind_of(raw) is EvidenceKind.TDX:
        return EvidenceKind.TDX, claims_of_quote(parse_quote(raw), None, {})
    report = Report.parse(raw)
    product: Product | None = None
    if report.version >= CPUID_VERSION:
        try:
            product = product_of_cpuid(report.cpuid_family, report.cpuid_model)
        except EvidenceError:
            product = None
    return EvidenceKind.SEV_SNP, claims_of(report, None, product)
