"""TDX quotes as a kind of evidence (Intel TDX DCAP)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.attestation.kind import KindOfEvidence
from sds.attestation.snp.kind import is_amd_root
from sds.attestation.snp.report import REPORT_BYTES
from sds.attestation.tdx.claims import claims_of_quote
from sds.attestation.tdx.quote import TEE_TYPE_TDX, parse_quote
from sds.attestation.tdx.verifier import TdxVerifier

if TYPE_CHECKING:
    from sds.attestation.kind import Demands


def _examiner(demands: Demands) -> TdxVerifier:
    return TdxVerifier(
        values=demands.values,
        trusted_roots=[der for der in demands.roots if not is_amd_root(der)],
        material=lambda: demands.files().intel,
    )


def _recognises(raw: bytes) -> bool:
    # An SNP report of version 4 begins as a quote of version 4; offset 4 holds GUEST_SVN there,
    # and a report has a length of its own.
    return len(raw) != REPORT_BYTES and int.from_bytes(raw[4:8], "little") == TEE_TYPE_TDX


def _contained(outblob: bytes, _auxblob: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    return parse_quote(outblob).body.report_data, ()


KIND = KindOfEvidence(
    title="Intel TDX quote",
    examiner=_examiner,
    recognises=_recognises,
    describe=lambda raw: claims_of_quote(parse_quote(raw), None, {}),
    contained=_contained,
)
