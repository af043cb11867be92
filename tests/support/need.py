"""What a test needs from the machine: skipped with a reason outside CI, a failure in CI."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IN_CI = os.environ.get("CI") == "true"


def missing(what: str) -> None:
    """Skip the test because ``what`` is missing; fail it where CI must have it."""
    if IN_CI:
        pytest.fail(f"{what} is missing, and CI must have it")
    pytest.skip(f"{what} is missing")


def tool(name: str) -> str:
    """Path of a program that the test needs."""
    found = shutil.which(name)
    if found is None:
        missing(f"the program {name!r}")
    assert found is not None
    return found


def root() -> None:
    """The test needs root."""
    if os.geteuid() != 0:
        missing("root")


def vectors() -> Path:
    """The folder of real attestation evidence (``SDS_VECTORS``)."""
    folder = Path(os.environ.get("SDS_VECTORS", ROOT.parent / "shared" / "snp-vectors"))
    if not (folder / "README.md").is_file():
        missing(f"the folder of evidence vectors {folder} (SDS_VECTORS)")
    return folder


def evidence_sets() -> Path:
    """The folder of evidence sets with the collateral that judges them (``SDS_EVIDENCE``)."""
    folder = Path(os.environ.get("SDS_EVIDENCE", ROOT.parent / "shared" / "evidence"))
    if not (folder / "INDEX.md").is_file():
        missing(f"the folder of evidence sets {folder} (SDS_EVIDENCE)")
    return folder


def envoy(version: str) -> Path:
    """The Envoy binary of this version, as ``make envoys`` installs it."""
    binary = ROOT / ".envoy" / version / "envoy" / "_bin" / "envoy"
    if not binary.is_file():
        missing(f"Envoy {version} ({binary}; run `make envoys`)")
    return binary
