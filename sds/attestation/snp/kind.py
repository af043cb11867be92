"""SEV-SNP reports as a kind of evidence (AMD 56860)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.attestation.kind import KindOfEvidence
from sds.attestation.snp.certificate import Certificate
from sds.attestation.snp.certificate_table import chain_of_host
from sds.attestation.snp.chain import amd_certificates
from sds.attestation.snp.claims import claims_of
from sds.attestation.snp.report import REPORT_BYTES, Product, Report, SigningKey
from sds.attestation.snp.verifier import SnpVerifier
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from sds.attestation.kind import Demands


def is_amd_root(der: bytes) -> bool:
    """Say whether a root is of this hierarchy (RSASSA-PSS)."""
    try:
        Certificate.parse(der)
    except EvidenceError:
        return False
    return True


def _examiner(demands: Demands) -> SnpVerifier:
    return SnpVerifier(
        values=demands.values,
        trusted_roots=[der for der in demands.roots if is_amd_root(der)],
        certificates=(*demands.certificates, *(one.der for one in amd_certificates())),
        lists=lambda: demands.files().amd_lists(),
        product=Product(demands.product) if demands.product is not None else None,
    )


def _describe(raw: bytes) -> dict[str, str]:
    report = Report.parse(raw)
    return claims_of(report, None, report.product)


def _contained(outblob: bytes, auxblob: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    report = Report.parse(outblob)
    vlek = report.signing_key == SigningKey.VLEK
    return report.report_data, chain_of_host(auxblob, vlek=vlek)


KIND = KindOfEvidence(
    title="AMD SEV-SNP attestation report",
    examiner=_examiner,
    recognises=lambda raw: len(raw) == REPORT_BYTES,
    describe=_describe,
    contained=_contained,
)
