"""Rules of the house that no tool checks: one meaning for a name, short modules, early imports."""

from __future__ import annotations

import ast
import builtins
import re
import statistics
import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest

from tests.support import need
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_LINES = 450
MEDIAN_LINES = 150
MOST_LATE_IMPORTS = 25
REFERENCE = re.compile(r":(?:func|class|mod|meth|data|attr|exc):`~?([\w.\s]+)`")


def lines(name: str) -> list[str]:
    return (need.ROOT / name).read_text(encoding="utf-8").splitlines()


def test_no_process_of_ours_imports_from_the_current_directory() -> None:
    """It may belong to another user. ``-P`` leaves it out, and so does ``-I``."""
    bare = []
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.List | ast.Tuple):
                words = [each.value for each in node.elts if isinstance(each, ast.Constant)]
                if "-m" in words and not {"-P", "-I"} & set(words[: words.index("-m")]):
                    bare.append(f"{name}:{node.lineno}")
    assert bare == []


@pytest.mark.no_cover
def test_a_public_class_name_is_defined_once() -> None:
    where: dict[str, list[str]] = defaultdict(list)
    for name, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where[node.name].append(name)
    assert {each: found for each, found in where.items() if len(found) > 1} == {}


def test_no_module_is_long() -> None:
    lengths = {name: len(lines(name)) for name in modules()}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
    assert statistics.median(lengths.values()) < MEDIAN_LINES


def dotted(name: str) -> str:
    """The name by which a module is imported."""
    return name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def defined(body: Iterable[ast.AST], before: str = "") -> Iterator[str]:
    """Every name that a module or class defines or imports, members with their class."""
    for node in body:
        match node:
            case ast.ClassDef():
                yield before + node.name
                yield from defined(node.body, f"{before}{node.name}.")
                for inner in ast.walk(node):
                    match inner:
                        case ast.Attribute(value=ast.Name(id="self")):
                            yield f"{before}{node.name}.{inner.attr}"
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield before + node.name
            case ast.Assign(targets=targets):
                yield from (before + each.id for each in targets if isinstance(each, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=found)):
                yield before + found
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (before + (each.asname or each.name) for each in names)
            case ast.If() | ast.Try():
                yield from defined(node.body, before)
            case _:
                pass


def exists(target: str, own: set[str], names: dict[str, set[str]]) -> bool:
    """Whether a docstring's reference leads to something."""
    first, *_ = parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        if (module := ".".join(parts[:cut])) in names:
            return cut == len(parts) or ".".join(parts[cut:]) in names[module]
    if first in sys.stdlib_module_names or first == "grpc" or hasattr(builtins, first):
        return True
    if any(one == target or one.endswith(f".{target}") for one in own):
        return True
    return first in own and any(target in found for found in names.values())


@pytest.mark.no_cover
def test_what_a_docstring_refers_to_exists() -> None:
    names = {dotted(name): set(defined(tree.body)) for name, tree in modules().items()}
    missing = []
    for name in modules():
        here = dotted(name)
        for found in REFERENCE.findall((need.ROOT / name).read_text(encoding="utf-8")):
            target = re.sub(r"\s", "", found)
            target = here + target if target.startswith(".") else target
            if not exists(target, names[here], names):
                missing.append(f"{name}: {target}")
    assert missing == []


@pytest.mark.no_cover
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


def test_no_property_fails_on_a_loaded_machine() -> None:
    """Hypothesis fails an example that takes 200 ms, unless the profile or the test says not to."""
    tests = need.ROOT / "tests"
    patient = {page.parent for page in tests.glob("*/conftest.py") if "patient" in page.read_text()}
    hurried = [
        str(path.relative_to(tests))
        for path in sorted(tests.rglob("test_*.py"))
        if patient.isdisjoint(path.parents)
        and re.search(r"^@given", text := path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        and "deadline=None" not in text
    ]
    assert hurried == []
