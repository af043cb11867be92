"""The threat model names tests that there are."""

from __future__ import annotations

import re

from tests.support.need import ROOT

PAGE = (ROOT / "docs" / "threat-model.md").read_text()
NAMED = re.compile(r"`(tests/[\w/.]+)`")


def test_every_test_that_it_names_is_there() -> None:
    named = set(NAMED.findall(PAGE))
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
