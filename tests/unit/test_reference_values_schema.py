"""The model of reference values, and its published JSON Schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from sds.attestation.reference_values import ReferenceValues
from tests.support.need import ROOT
from tests.support.published_schema import check_schema


def test_the_schema_in_docs_is_the_models() -> None:
    published = json.loads((ROOT / "docs" / "reference-values.schema.json").read_text())
    assert published == ReferenceValues.model_json_schema()
    check_schema(
        published,
        accepts={"snp": {"minimum_tcb": {"turin": {"fmc": 1}}}},
        refuses={"snp": {"minimum_tcb": {"turin": {"fmc": "new"}}}},
    )


@pytest.mark.parametrize(
    "snp",
    [
        {"permit_vlek": False, "permit_vcek": False},
        {"permit_vlek": False, "csp_ids": ["CN=cloud"]},
        {"chip_ids": ["1b" * 64], "denied_chip_ids": ["2c" * 64, "1b" * 64]},
    ],
)
def test_values_that_no_report_can_have_are_refused(snp: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="no report can be accepted"):
        ReferenceValues.model_validate({"snp": snp})


@pytest.mark.parametrize(
    "snp",
    [
        {"permit_vlek": False},
        {"permit_vcek": False, "csp_ids": ["CN=cloud"]},
        {"permit_vlek": False, "permit_vcek": True, "csp_ids": ["CN=cloud"]},
        {"chip_ids": ["1b" * 64, "3d" * 64], "denied_chip_ids": ["1b" * 64]},
    ],
)
def test_values_that_some_report_can_have_are_accepted(snp: dict[str, Any]) -> None:
    assert ReferenceValues.model_validate({"snp": snp})
