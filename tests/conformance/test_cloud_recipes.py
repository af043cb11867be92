"""The reference values of docs/how-to/confidential-clouds.md accept real machines of each cloud."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sds.attestation.collateral.followed_files import Places, examined_files
from sds.attestation.evidence import Evidence, EvidenceKind
from sds.attestation.kind import Demands
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.registry import kind_module
from tests.support import azure_vectors, evidence_vectors, need

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.checks import Verdict

PAGE = need.ROOT / "docs/how-to/confidential-clouds.md"
RECIPES: dict[str, dict[str, Any]] = {
    found[1]: yaml.safe_load(found[2])
    for found in re.finditer(r"(?ms)^```yaml\n# vector: (\S+)\n(.*?)^```$", PAGE.read_text())
}
AZURE_TDX = "f51db4d1-00806f050000-20251019-e12d-c61c"
GOOGLE_TDX = "85ef3b3f-00806f050000-20260630-36dc-95c7"


def shown(name: str) -> tuple[Evidence, datetime, Path | None]:
    """Evidence of a real machine, when it is judged, and its collateral."""
    if name == "aws":
        vector = "milan-v3-vlek-vmpl1"
        return evidence_vectors.evidence(vector), evidence_vectors.at(vector), None
    if name == "own-host":
        return evidence_vectors.evidence("genoa-v3"), evidence_vectors.AT, None
    folder = need.evidence_sets()
    if name == "azure-snp":
        return azure_vectors.evidence(folder, "snp"), datetime(2026, 11, 1, tzinfo=UTC), None
    judged = folder / "tdx" / (AZURE_TDX if name == "azure-tdx" else GOOGLE_TDX)
    at = datetime.fromisoformat(json.loads((judged / "meta.json").read_text())["at"])
    if name == "azure-tdx":
        return azure_vectors.evidence(folder, "tdx"), at, judged / "collateral"
    quote = (judged / "quote.bin").read_bytes()
    return Evidence(kind=EvidenceKind.TDX, report=quote), at, judged / "collateral"


def judged(name: str, values: dict[str, Any]) -> Verdict:
    evidence, at, collateral = shown(name)
    files = examined_files(Places(collateral=collateral))
    make = kind_module(evidence.kind).examiner
    assert make is not None
    demands = Demands(values=ReferenceValues.model_validate(values), files=lambda: files)
    return make(demands).examine(evidence, data=None, now=at)


def failed(verdict: Verdict) -> list[str]:
    return [check.error.reason for check in verdict.checks if check.error is not None]


def another(value: str) -> str:
    return "00" * (len(value) // 2)


def changed(values: Any, at: str = "") -> list[tuple[str, Any]]:
    """The same with one digest in place of each that is there, and where."""
    if isinstance(values, str) and len(values) >= 64 and not set(values) - set("0123456789abcdef"):
        return [(at, another(values))]
    if isinstance(values, dict):
        return [
            (where, {**values, key: made})
            for key, value in values.items()
            for where, made in changed(value, f"{at}.{key}")
        ]
    if isinstance(values, list):
        return [
            (where, [*values[:index], made, *values[index + 1 :]])
            for index, value in enumerate(values)
            for where, made in changed(value, at)
        ]
    return []


def test_every_cloud_has_a_recipe() -> None:
    assert RECIPES.keys() == {"aws", "azure-snp", "azure-tdx", "google-tdx", "own-host"}


@pytest.mark.parametrize("name", list(RECIPES))
def test_a_recipe_accepts_a_real_machine_of_its_cloud_and_no_other_code(name: str) -> None:
    assert failed(judged(name, RECIPES[name])) == []
    variants = changed(RECIPES[name])
    assert variants
    for where, values in variants:
        expected = "pcr" if ".pcrs" in where else "measurement"
        assert failed(judged(name, values)) == [expected], where


def test_awss_recipe_says_what_the_defaults_refuse() -> None:
    assert set(failed(judged("aws", {}))) == {"vmpl", "provisional_firmware"}
    other = {**RECIPES["aws"], "snp": {**RECIPES["aws"]["snp"], "csp_ids": ["CN=another"]}}
    assert failed(judged("aws", other)) == ["csp_id"]
    assert failed(judged("own-host", {"snp": {"csp_ids": ["CN=another"]}})) == ["csp_id"]
