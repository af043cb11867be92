"""A TPM's evidence on an ordinary machine, as a kind of evidence."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sds.attestation.kind import KindOfEvidence
from sds.attestation.tpm.attester import tpm_attester
from sds.attestation.tpm.keys import parse_public
from sds.attestation.tpm.parcel import MARK, Piece, quote_of, unpack
from sds.attestation.tpm.quote import describe_quote
from sds.attestation.tpm.values import own_values
from sds.attestation.tpm.verifier import KIND as NAME
from sds.attestation.tpm.verifier import TpmValues, TpmVerifier
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from sds.attestation.kind import Demands


def _examiner(demands: Demands) -> TpmVerifier:
    return TpmVerifier(own_values(NAME, TpmValues, demands.values))


def _recognises(raw: bytes) -> bool:
    if not raw.startswith(MARK):
        return False
    try:
        return Piece.PUBLIC in unpack(raw)
    except EvidenceError:
        return False


def _describe(raw: bytes) -> dict[str, str]:
    parts = unpack(raw)
    public = parse_public(parts.get(Piece.PUBLIC, b""))
    return {
        "ak": hashlib.sha256(public.raw).hexdigest(),
        "ak_name": public.name.hex(),
        **describe_quote(quote_of(parts)),
    }


KIND = KindOfEvidence(
    title="TPM 2.0 quote of an ordinary machine",
    examiner=_examiner,
    recognises=_recognises,
    describe=_describe,
    attester=tpm_attester,
)
