"""Rules of the house that no tool checks: one meaning for a name, short modules, early imports."""

from __future__ import annotations

import ast
from collections import defaultdict

from tests.support import need
from tests.support.source import modules

MOST_LINES = 450
MOST_LATE_IMPORTS = 25
# Longer than the rule allows; a line leaves this list, and none joins it.
LONGER = {
    "sds/attestation/snp/verifier.py",
    "sds/serving/subscription.py",
}


def lines(name: str) -> list[str]:
    return (need.ROOT / name).read_text(encoding="utf-8").splitlines()


def test_a_public_class_name_is_defined_once() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(name)
    assert {each: found for each, found in where.items() if len(found) > 1} == {}


def test_no_module_is_long() -> None:
    long = {name for name in modules() if len(lines(name)) > MOST_LINES}
    assert long <= LONGER


def test_few_imports_wait_and_each_says_why() -> None:
    late: dict[str, str] = {}
    for name, tree in modules().items():
        text = lines(name)
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    late[f"{name}:{node.lineno}"] = text[node.lineno - 1]
    assert len(late) <= MOST_LATE_IMPORTS, sorted(late)
