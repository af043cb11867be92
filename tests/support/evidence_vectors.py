"""Real SEV-SNP evidence, as the tests ask for it (``SDS_VECTORS``)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.pem import der_certificates
from tests.support import need

if TYPE_CHECKING:
    from pathlib import Path

AT = datetime(2026, 11, 1, tzinfo=UTC)
"""A moment at which every VCEK of the vectors is valid."""
AT_VLEK = datetime(2025, 6, 1, tzinfo=UTC)
"""A moment at which the VLEK is valid."""

VECTORS = {
    "milan-v2": ("vcek.cer", ["milan-ask.pem", "milan-ark.pem"]),
    "milan-v2-debug": ("vcek.cer", ["milan-ask.pem", "milan-ark.pem"]),
    "milan-v2-provisional": ("vcek.cer", ["milan-ask.pem", "milan-ark.pem"]),
    "milan-v3-vlek-vmpl1": ("vlek.cer", ["milan-asvk-ark.pem"]),
    "genoa-v3": ("vcek.cer", ["genoa-ask.pem", "genoa-ark.pem"]),
    "turin-v5": ("vcek.pem", ["turin-ask.pem", "turin-ark.pem"]),
}


def files(name: str) -> tuple[Path, Path, list[Path]]:
    """Paths of a vector's report, leaf and chain."""
    folder = need.vectors()
    leaf, chain = VECTORS[name]
    return (
        folder / name / "report.bin",
        folder / name / leaf,
        [folder / "roots" / file for file in chain],
    )


def evidence(name: str) -> Evidence:
    """A vector with its certificates."""
    report, leaf, chain = files(name)
    certificates = [
        der
        for path in (leaf, *chain)
        for der in der_certificates(path.read_bytes(), what=path.name)
    ]
    return Evidence(
        kind=EvidenceKind.SEV_SNP, report=report.read_bytes(), certificates=tuple(certificates)
    )


def at(name: str) -> datetime:
    """When its certificates are valid."""
    return AT_VLEK if "vlek" in name else AT
