"""Errors of the system reach people in words, without the numbers that only programmers know."""

from __future__ import annotations

import ast
import socket
import ssl
from typing import TYPE_CHECKING

import pytest

from sds.untrusted_input import words_of
from tests.support.source import modules

if TYPE_CHECKING:
    from collections.abc import Iterator

OF_THE_SYSTEM = {
    "OSError",
    "TimeoutError",
    "ConnectionError",
    "SSLError",
    "ClientError",
    "gaierror",
    "Exception",
    "BaseException",
}
"""Classes whose text has a number, or nothing."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (
            FileNotFoundError(2, "No such file or directory", "/a"),
            "No such file or directory: '/a'",
        ),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (OSError("Multiple exceptions: [Errno 111] A, [Errno 101] B"), "Multiple exceptions: A, B"),
        (ssl.SSLError(1, "[SSL] record layer failure (_ssl.c:1006)"), "[SSL] record layer failure"),
        (TimeoutError(), "no answer in time"),
        (TimeoutError("no whole answer"), "no whole answer"),
        (MemoryError(), "MemoryError"),
        (KeyError("format"), "'format' is missing"),
        (ValueError("a [Errno] of its own"), "a [Errno] of its own"),
    ],
)
def test_an_error_is_said_in_words(error: BaseException, said: str) -> None:
    assert words_of(error) == said


def shown_raw(handler: ast.ExceptHandler) -> Iterator[int]:
    """The lines in which a handler puts its error into a text or a field of the log as it is."""
    name = handler.name

    def is_it(node: ast.expr) -> bool:
        match node:
            case ast.Call(func=ast.Name(id="str" | "repr"), args=[only]):
                return is_it(only)
            case ast.BoolOp(values=values):
                return is_it(values[0])
            case _:
                return isinstance(node, ast.Name) and node.id == name

    for node in ast.walk(ast.Module(body=handler.body, type_ignores=[])):
        match node:
            case ast.FormattedValue(value=value) if is_it(value):
                yield node.lineno
            case ast.Dict(values=values):
                yield from (value.lineno for value in values if is_it(value))
            case ast.Call(func=ast.Attribute(attr="warning" | "error" | "info" | "debug")):
                yield from (given.lineno for given in node.args if is_it(given))


def caught(handler: ast.ExceptHandler) -> set[str]:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {
        each.attr if isinstance(each, ast.Attribute) else each.id
        for each in kinds
        if isinstance(each, ast.Attribute | ast.Name)
    }


@pytest.mark.no_cover
def test_no_handler_shows_an_error_of_the_system_as_it_is() -> None:
    found = [
        f"{name}:{line}"
        for name, tree in modules().items()
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler) and caught(handler) & OF_THE_SYSTEM
        for line in shown_raw(handler)
    ]
    assert found == []
