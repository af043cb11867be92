"""Every parser of data from outside: only our errors come out, and the cost is linear."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import source
from tests.support.parsers import NOT_PARSERS, PARSERS, ROOMS, Parser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

QUIET = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
by_name = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)


@functools.cache
def samples(parser: Parser) -> Sequence[bytes]:
    return tuple(parser.samples())


def look(parser: Parser, raw: bytes) -> None:
    """Parse, where only the parser's errors may come out."""
    with contextlib.suppress(*parser.errors):
        parser.parse(raw)


# --- the list is complete -------------------------------------------------------------------------


def functions() -> Iterator[str]:
    """Every public function of the rooms whose first argument is ``bytes``."""
    for path, tree in source.modules().items():
        if path.startswith(tuple(f"{room}/" for room in ROOMS)):
            module = path.removesuffix(".py").replace("/", ".")
            yield from (f"{module}:{name}" for name in _in(tree, ""))


def _in(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _in(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = [
                each
                for each in (*child.args.posonlyargs, *child.args.args)
                if each.arg not in {"self", "cls"}
            ]
            first = arguments[0].annotation if arguments else None
            takes = first is not None and ast.unparse(first) in {
                "bytes",
                "SignedDocument",
                "SignedPolicy",
            }
            if takes and not child.name.startswith("_"):
                yield prefix + child.name


def test_the_list_is_complete() -> None:
    listed = {parser.name for parser in PARSERS}
    found = {name for name in functions() if name.partition(":")[2]}
    assert found - listed - NOT_PARSERS.keys() == set(), "add them to tests/support/parsers.py"
    rooms = tuple(room.replace("/", ".") for room in ROOMS)
    ours = {name for name in listed | NOT_PARSERS.keys() if name.startswith(rooms)}
    assert ours - found == set(), "these are gone"
    assert len(listed) == len(PARSERS)


# --- errors ---------------------------------------------------------------------------------------


@by_name
def test_samples_are_read_or_refused(parser: Parser) -> None:
    for raw in samples(parser):
        look(parser, raw)


@by_name
@QUIET
@given(raw=st.binary(max_size=600) | st.text(max_size=80).map(str.encode))
@example(raw=b"")
@example(raw=b"\x30\x80\0\0")
@example(raw=b"\x30\x84\xff\xff\xff\xff")
@example(raw=b"HCLA")
@example(raw=b"[" * 5000)
@example(raw=b'{"a":' * 5000)
@example(raw=b'{"keys":[{"kty":"EC","kid":"a","crv":"P-256","x":"","y":"AQ","alg":[]}]}')
@example(raw=b'{"tcbInfo":' + b"[" * 5000)
@example(raw=b'{"tcbInfo":{},"signature":"' + b"00" * 64 + b'"}')
@example(raw=b'{"tcbLevels":[{"tcb":{"pcesvn":Infinity}}],"issueDate":NaN}')
@example(raw=b'{"tcbEvaluationDataNumber":' + b"9" * 5000 + b"}")
@example(raw=b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----")
@example(raw=b"-----BEGIN \xff-----\n-----END \xff-----")
@example(raw=b"-----BEGIN CERTIFICATE-----\n" * 50)
def test_anything(parser: Parser, raw: bytes) -> None:
    look(parser, raw)


@by_name
@QUIET
@given(data=st.data())
def test_a_changed_sample(parser: Parser, data: st.DataObject) -> None:
    if not samples(parser):
        return
    raw = bytearray(data.draw(st.sampled_from(samples(parser))))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["change", "insert", "remove", "repeat"])):
            case "change":
                raw[at] = data.draw(st.integers(0, 255))
            case "insert":
                raw[at:at] = data.draw(st.binary(max_size=8))
            case "remove" if len(raw) > 1:
                del raw[at]
            case _:
                raw[at:at] = raw[at : at + data.draw(st.integers(1, 40))]
    look(parser, bytes(raw))


# --- cost -----------------------------------------------------------------------------------------

SMALL = 8 * 1024
TIMES = 8
"""The large input is so many times the small one."""
FREE_SECONDS = 0.02
"""Processor time of this thread that says nothing about growth."""
PEAK_TIMES = 64
PEAK_FREE = 4 * 1024 * 1024


def _repeated(unit: bytes) -> Callable[[int], bytes]:
    return lambda size: unit * (size // len(unit))


SHAPES: dict[str, Callable[[int], bytes]] = {
    "zeros": _repeated(b"\0"),
    "spaces": _repeated(b" "),
    "line ends": _repeated(b"\n"),
    "PEM blocks that are not closed": _repeated(b"-----BEGIN CERTIFICATE-----\n"),
    "PEM blocks with other labels": _repeated(b"-----BEGIN A-----\n-----END A-----\n"),
    "a PEM block": lambda size: (
        b"-----BEGIN CERTIFICATE-----\n" + b"QUFB\n" * (size // 5) + b"-----END CERTIFICATE-----\n"
    ),
    "many PEM certificates": _repeated(
        b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
    ),
    "dashes": _repeated(b"-"),
    "JSON arrays": _repeated(b"["),
    "JSON document": lambda size: b'{"tcbInfo":{"a":[' + b"0," * (size // 2),
    "JSON spaces": lambda size: b'{"tcbInfo":' + b" " * size,
    "digits": _repeated(b"9"),
    "DER sequences inside one another": _repeated(b"\x30\x84\x7f\xff\xff\xff"),
    "DER elements": lambda size: (
        b"\x30\x84" + (size // 2 * 2).to_bytes(4, "big") + b"\5\0" * (size // 2)
    ),
}


def seconds(parser: Parser, raw: bytes, *, enough: float = FREE_SECONDS / 4) -> float:
    """The least of three measurements; the first that is below ``enough`` will do."""
    best = float("inf")
    for _ in range(3):
        gc.disable()  # a collection looks at all that other tests left
        try:
            began = time.thread_time()
            look(parser, raw)
            best = min(best, time.thread_time() - began)
        finally:
            gc.enable()
        if best < enough or best > FREE_SECONDS:
            break  # too short to matter, or too long for a hiccup to matter
    return best


@by_name
def test_cost_is_in_proportion_to_the_input(parser: Parser) -> None:
    grown: dict[str, Callable[[int], bytes]] = {**SHAPES, **parser.shapes}
    for index, sample in enumerate(samples(parser)):
        grown[f"sample {index} repeated"] = _repeated(sample)
        grown[f"sample {index} with a long end"] = lambda size, sample=sample: (  # type: ignore[misc]
            sample + bytes(size)
        )
    for shape, make in grown.items():
        large = make(SMALL * TIMES)
        last = seconds(parser, large, enough=FREE_SECONDS)
        if last < FREE_SECONDS:
            continue  # whatever the small one takes
        first = seconds(parser, make(SMALL))
        # Twice the input at most about twice the cost; a quadratic parser takes 64 times in all.
        most = max(FREE_SECONDS, 3 * TIMES * first)
        for _ in range(4):
            if last < most:
                break
            # What else the machine does only adds: too long is what is too long each time.
            last = min(last, seconds(parser, large))
        assert last < most, (shape, first, last)


@by_name
def test_memory_is_in_proportion_to_the_input(parser: Parser) -> None:
    for shape, make in SHAPES.items():
        raw = make(SMALL * TIMES)
        tracemalloc.start()
        try:
            look(parser, raw)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < PEAK_FREE + PEAK_TIMES * len(raw), shape
