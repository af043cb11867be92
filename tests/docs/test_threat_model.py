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


def test_every_attack_names_its_test() -> None:
    """Also what is not prevented: a test shows it."""
    _, _, attacks = PAGE.partition("\n## Attacks and countermeasures\n")
    attacks, _, _ = attacks.partition("\n## ")
    rows = [line for line in attacks.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 40
    without = [row[:80] for row in rows if not NAMED.search(row)]
    assert without == []
