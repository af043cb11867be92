"""The page of attestation names every claim that verified evidence makes."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.support import need
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (need.ROOT / "docs" / "attestation.md").read_text()
SECTION = PAGE.split("\n## Claims\n", 1)[1].split("\n## ", 1)[0]
NAMED = set(re.findall(r"`([^`]+)`", SECTION))
WHERE = {
    "sds/attestation/snp/claims.py": {"claims_of"},
    "sds/attestation/tdx/claims.py": {"claims_of_quote", "_of_service_tds"},
    "sds/attestation/tpm/values.py": {"claims_of_quote"},
    "sds/attestation/kubernetes/token.py": {"_identity"},
    "sds/attestation/exchange_key/events.py": {"check_exchange_key"},
}
"""Module -> its functions that make claims."""


def claims_of(function: ast.AST) -> Iterator[str]:
    """Yield the constant names of the claims that a function makes."""
    for node in ast.walk(function):
        match node:
            case ast.Dict(keys=keys):
                yield from (str(key.value) for key in keys if isinstance(key, ast.Constant))
            case ast.Subscript(slice=ast.Constant(value=str(name)), ctx=ast.Store()):
                yield name
            case _:
                pass


@pytest.mark.parametrize("module", WHERE)
def test_every_claim_is_on_the_page(module: str) -> None:
    functions = {
        node.name: set(claims_of(node))
        for node in ast.walk(modules()[module])
        if isinstance(node, ast.FunctionDef) and node.name in WHERE[module]
    }
    assert set(functions) == WHERE[module]
    made = set().union(*functions.values())
    assert made
    assert made - NAMED == set()
