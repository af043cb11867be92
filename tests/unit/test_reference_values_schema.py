"""The published JSON Schema is the model's."""

from __future__ import annotations

import json

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
