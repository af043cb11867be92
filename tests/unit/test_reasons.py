"""The table of reasons and the program agree, and the tree of errors stays small."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from sds import errors
from sds.reasons import REASONS
from sds.reasons.authority import NO_ANSWER
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import Iterator

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.SdsError)
}
NAMED = {"NO_ANSWER": NO_ANSWER}
LABEL = re.compile(r"[a-z0-9_]+")


def sources() -> Iterator[ast.Module]:
    for name, tree in modules().items():
        if not name.startswith("sds/reasons/"):
            yield tree


def texts(node: ast.expr) -> Iterator[str]:
    """The texts that an expression may give: a literal, a constant, or a branch of a condition."""
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value
        elif isinstance(each, ast.Name) and each.id in NAMED:
            yield NAMED[each.id]


def raised_reasons() -> set[str]:
    """Reasons that are named where an error is made, and those of classes that are made bare."""
    found: set[str] = set()
    for tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            named = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            for value in named:
                found.update(texts(value))
            if name in CLASSES and not named:
                found.add(CLASSES[name].reason)
            if name in {"add", "among"} and len(node.args) > 1:  # Checks: name, reason
                found.update(texts(node.args[1]))
    return found


@pytest.mark.no_cover
def test_every_reason_that_the_program_names_is_in_the_table() -> None:
    for tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                for keyword in node.keywords:
                    if keyword.arg == "reason" and name in CLASSES:
                        for text in texts(keyword.value):
                            assert text in REASONS, f"{name}: {text}"
    for kind in CLASSES.values():
        assert kind.reason in REASONS, kind


@pytest.mark.no_cover
def test_every_row_of_the_table_is_raised() -> None:
    bases = {kind.reason for kind in CLASSES.values()}
    unused = set(REASONS) - raised_reasons() - bases
    assert not unused, f"nothing raises {sorted(unused)}: take these rows out"


def test_every_reason_is_a_label_with_a_cure() -> None:
    for reason, row in REASONS.items():
        assert LABEL.fullmatch(reason), reason
        assert row.cure.endswith((".", "`.")), reason


@pytest.mark.no_cover
def test_the_tree_of_errors_stays_small_and_whole() -> None:
    assert len(CLASSES) <= 30
    for tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name not in CLASSES:
                bases = {getattr(base, "id", "") for base in node.bases}
                assert not bases & set(CLASSES), f"{node.name} is an error outside sds/errors.py"


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_an_error_says_what_its_row_says(reason: str) -> None:
    error = errors.SdsError("what", reason=reason, advice="do this")
    assert error.retriable is REASONS[reason].retriable
    assert str(error) == "what (do this)"
