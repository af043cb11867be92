"""Rules of the house that no tool checks: one meaning for a name, short modules, early imports."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import sds

ROOT = Path(sds.__file__).parent
MODULES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
    if "_proto" not in path.parts
}
MOST_LINES = 450
MOST_LATE_IMPORTS = 25
# Longer than the rule allows; a line leaves this list, and none joins it.
LONGER = {
    "attestation/snp/verifier.py",
    "serving/subscription.py",
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_a_public_class_name_is_defined_once() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for path, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(name(path))
    assert {each: found for each, found in where.items() if len(found) > 1} == {}


def test_no_module_is_long() -> None:
    long = {
        name(path)
        for path in MODULES
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES
    }
    assert long <= LONGER


def test_few_imports_wait_and_each_says_why() -> None:
    late: dict[str, str] = {}
    for path, tree in MODULES.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        for function in ast.walk(tree):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    late[f"{name(path)}:{node.lineno}"] = lines[node.lineno - 1]
    assert len(late) <= MOST_LATE_IMPORTS, sorted(late)
