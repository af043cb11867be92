"""The program's own source, read once, for tests that hold it to rules of the house."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
from typing import TYPE_CHECKING

from tests.support import need

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@functools.cache
def modules() -> Mapping[str, ast.Module]:
    """Each module of ours, by its path from the root; generated ones are left out."""
    with _without_garbage_collection():
        return {
            str(path.relative_to(need.ROOT)): ast.parse(path.read_text(encoding="utf-8"))
            for path in sorted((need.ROOT / "sds").rglob("*.py"))
            if "_proto" not in path.parts
        }


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """A collection while a tree is made may run code that makes another one.

    CPython 3.11 counts the depth of both in one place, and says "AST constructor recursion depth
    mismatch" (python/cpython#106905).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@functools.cache
def methods_called() -> tuple[tuple[str, ast.Call, ast.Attribute], ...]:
    """Methods that are called, here or by what they are handed to, with the module's path."""
    return tuple(_methods_called())


def _methods_called() -> Iterator[tuple[str, ast.Call, ast.Attribute]]:
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                for part in (node.func, *node.args):
                    if isinstance(part, ast.Attribute):
                        yield name, node, part
