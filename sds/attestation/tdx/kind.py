"""TDX quotes as a kind of evidence (Intel TDX DCAP)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sds.attestation.kind import KindOfEvidence
from sds.attestation.pem import UNREADABLE, der_certificates
from sds.attestation.snp.kind import is_amd_root
from sds.attestation.snp.report import REPORT_BYTES
from sds.attestation.tdx.claims import claims_of_quote
from sds.attestation.tdx.pck import Pck, read_pck
from sds.attestation.tdx.quote import TEE_TYPE_TDX, parse_quote
from sds.attestation.tdx.verifier import TdxVerifier
from sds.errors import CertificateError, EvidenceError
from sds.pki.chain import load_certificate

if TYPE_CHECKING:
    from sds.attestation.kind import Demands


def _examiner(demands: Demands) -> TdxVerifier:
    return TdxVerifier(
        values=demands.values,
        trusted_roots=[der for der in demands.roots if not is_amd_root(der)],
        material=lambda: demands.files().intel,
    )


def _recognises(raw: bytes) -> bool:
    # An SNP report of version 4 begins like a quote of version 4, but has GUEST_SVN at offset 4 and
    # a fixed length.
    return len(raw) != REPORT_BYTES and int.from_bytes(raw[4:8], "little") == TEE_TYPE_TDX


def _describe(raw: bytes) -> dict[str, str]:
    quote = parse_quote(raw)
    pck: Pck | None = None
    # Name the platform, as far as the quote's first certificate can be read.
    with contextlib.suppress(EvidenceError, CertificateError, *UNREADABLE):
        leaf, *_ = der_certificates(quote.pck_chain, what="the PCK chain")
        pck = read_pck(load_certificate(leaf))
    return claims_of_quote(quote, pck, {})


def _contained(outblob: bytes, _auxblob: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    return parse_quote(outblob).body.report_data, ()


KIND = KindOfEvidence(
    title="Intel TDX quote",
    examiner=_examiner,
    recognises=_recognises,
    describe=_describe,
    contained=_contained,
)
