"""The JSON Schema that is published is the one that the model gives."""

from __future__ import annotations

import json

from click.testing import CliRunner

from sds import cli
from tests.support.need import ROOT


def test_the_published_schema_is_the_model_s() -> None:
    printed = CliRunner().invoke(cli.main, ["policy", "schema"])
    published = (ROOT / "docs" / "policy.schema.json").read_text()
    assert json.loads(published) == json.loads(printed.stdout), (
        "run: .venv/bin/sds policy schema > docs/policy.schema.json"
    )
