"""Every field that the code logs is documented, and no event is logged that holds a key."""

from __future__ import annotations

import ast
import re

from tests.support import need
from tests.support.source import modules


def logged_fields() -> dict[str, str]:
    """Name of each ``extra`` field -> where it is used."""
    found: dict[str, str] = {}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                for keyword in node.keywords:
                    if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
                        for key in keyword.value.keys:
                            if isinstance(key, ast.Constant):
                                found[str(key.value)] = name
    return found


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
