"""Real evidence of Azure's confidential VMs, as our evidence carries it."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.tpm.parcel import Piece, pack, parts_of
from sds.attestation.tpm.quote import SignedQuote
from sds.attestation.tpm.wire import Algorithm, sized

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def decoded(text: str) -> bytes:
    """Base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def quote_of(said: Mapping[str, Any]) -> SignedQuote:
    """A quote as ``az-cvm-vtpm`` writes it: message and bare RSASSA signature in hex."""
    head = struct.pack(">HH", Algorithm.RSASSA, Algorithm.SHA256)
    return SignedQuote(
        attest=bytes.fromhex(said["message"]),
        signature=head + sized(bytes.fromhex(said["signature"])),
        values=b"".join(map(bytes.fromhex, said["pcrs"])),
    )


def evidence(folder: Path, kind: str) -> Evidence:
    """Real evidence: ``snp`` or ``tdx``."""
    if kind == "snp":
        document = json.loads((folder / "azure/snp/evidence-v2.json").read_text())
        certificates = tuple(
            (folder / "azure/snp" / name).read_bytes()
            for name in ("imds-chain-0.der", "imds-chain-1.der")
        )
        certificates = (decoded(document["vcek"]), *certificates)
    else:
        document = json.loads((folder / "azure/tdx/evidence-v1.json").read_text())
        certificates = ()
    parts = {
        **parts_of(quote_of(document["tpm_quote"])),
        Piece.HCL: decoded(document["hcl_report"]),
    }
    if kind == "tdx":
        parts[Piece.TD_QUOTE] = decoded(document["td_quote"])
    return Evidence(
        kind=EvidenceKind(f"azure-{kind}-vtpm"), report=pack(parts), certificates=certificates
    )
