"""Every field that the code logs is documented, and no event is logged that holds a key."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from tests.support import need
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import Iterator


def fields_of(tree: ast.AST) -> Iterator[str]:
    """Names of the fields that one module logs, however their dict is made."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for call in calls:
        if isinstance(call.func, ast.Name) and call.func.id == "report":
            yield from (keyword.arg for keyword in call.keywords if keyword.arg)
    extras = [word.value for call in calls for word in call.keywords if word.arg == "extra"]
    names = {extra.id for extra in extras if isinstance(extra, ast.Name)}
    for extra in extras:
        yield from keys_in(extra)
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in names:
                yield from keys_in(value)
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=key))]
            ) if name in names:
                yield str(key)
            case _:
                pass


def keys_in(value: ast.expr) -> Iterator[str]:
    """Constant keys of the dicts in an expression."""
    for node in ast.walk(value):
        if isinstance(node, ast.Dict):
            yield from (str(key.value) for key in node.keys if isinstance(key, ast.Constant))


def logged_fields() -> dict[str, str]:
    """Name of each field of the log -> where it is used."""
    return {field: name for name, tree in modules().items() for field in fields_of(tree)}


def documented_fields() -> set[str]:
    text = (need.ROOT / "docs" / "operations.md").read_text()
    section = text.split("## Logs", 1)[1].split("\n## ", 1)[0]
    names: set[str] = set()
    for row in re.findall(r"^\| (`[^|]*`) \|", section, flags=re.MULTILINE):
        names |= set(re.findall(r"`([^`]+)`", row))
    return names


def words_of_the_code() -> set[str]:
    """Every string, keyword and attribute of the code: fields may be put together anywhere."""
    found: set[str] = set()
    for tree in modules().values():
        for node in ast.walk(tree):
            match node:
                case ast.Constant(value=str(text)):
                    found.add(text)
                case ast.keyword(arg=str(name)) | ast.Attribute(attr=name):
                    found.add(name)
                case _:
                    pass
    return found


def test_every_documented_field_is_in_the_code() -> None:
    assert documented_fields() - words_of_the_code() == set()


def test_every_logged_field_is_documented() -> None:
    missing = {k: v for k, v in logged_fields().items() if k not in documented_fields()}
    assert not missing
