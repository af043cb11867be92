"""Lists are read object by object: what pods' authors put into them fills no memory."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest

from sds.workload.kubernetes import lists
from sds.workload.kubernetes.lists import ListReader, read_list
from tests.support.cost import assert_linear

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

ITEMS = [{"metadata": {"name": f"é{number}"}, "text": '[{,}]\\"'} for number in range(20)]
DOCUMENT: dict[str, Any] = {
    "kind": "PodList",
    "metadata": {"resourceVersion": "7", "remainingItemCount": 12},
    "items": ITEMS,
    "count": 1234,
    "none": None,
}


async def arriving(pieces: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    for piece in pieces:
        yield piece


def read_whole(reader: ListReader, pieces: Iterable[bytes]) -> dict[str, Any]:
    for piece in pieces:
        reader.feed(piece)
    return reader.end()


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 10_000])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_in_pieces_is_the_list(size: int, indent: int | None) -> None:
    found: list[Any] = []
    reader = ListReader(found.append)
    for piece in cut(json.dumps(DOCUMENT, indent=indent, ensure_ascii=False).encode(), size):
        reader.feed(piece)
    assert reader.end() == {key: DOCUMENT[key] for key in DOCUMENT if key != "items"}
    assert found == ITEMS


@pytest.mark.parametrize("text", ['{"items": null}', '{"items": []}', "{}", ' {"items" : [ ] } '])
def test_an_empty_list_is_one(text: str) -> None:
    found: list[Any] = []
    reader = ListReader(found.append)
    reader.feed(text.encode())
    reader.end()
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b'{"items": [{}',
        b'{"items": [{}]',
        b'{"items": [{} {}]}',
        b'{"items": [{},]}',
        b'{"items": 7}',
        b'{"items": [{}]} x',
        b'{"items": [{}]}{}',
        b"{items: []}",
        b'{"a" 1}',
        b'{"a": 1 "b": 2}',
        b'{"a": \xff}',
        b'{"items": [' + b"[" * 100_000,
        b'{"a": ' + b'{"a": ' * 100_000,
    ],
)
def test_what_is_not_a_list_is_one_error(text: bytes) -> None:
    for size in (1 << 20, 1000):
        reader = ListReader(lambda _: None)
        with pytest.raises(ValueError):
            read_whole(reader, cut(text, size))


def test_an_object_without_an_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_MOST_CHARACTERS", 10_000)
    reader = ListReader(lambda _: None)
    reader.feed(b'{"items": [{"a": "')
    with pytest.raises(ValueError, match="too large"):
        read_whole(reader, [b"x" * 1000] * 100)
    assert sum(map(len, (reader._text, *reader._more))) <= 21_000


def test_what_is_beside_the_items_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of 512 MiB without items was kept as a whole."""
    monkeypatch.setattr(lists, "_MOST_BESIDE", 10_000)
    reader = ListReader(lambda _: None)
    fields = (f'"a{number}": "{"x" * 1000}", '.encode() for number in range(100))
    with pytest.raises(ValueError, match="beside its items"):
        read_whole(reader, [b"{", *fields, b'"items": []}'])
    assert len(reader.fields) < 11


def test_a_list_in_tiny_pieces_costs_its_bytes() -> None:
    def work(size: int) -> Callable[[], object]:
        text = json.dumps({"items": [{"a": "x" * size}]}).encode()
        return lambda: read_whole(ListReader(lambda _: None), cut(text, 1))

    assert_linear(work, 8_000)


def test_a_long_object_in_many_pieces_is_tried_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    class Counting(json.JSONDecoder):
        def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
            tried.append(len(s))
            return super().raw_decode(s, idx)

    monkeypatch.setattr(lists, "_DECODER", Counting())
    found: list[Any] = []
    reader = ListReader(found.append)
    for piece in cut(json.dumps({"items": [{"a": "x" * 200_000}]}).encode(), 100):
        reader.feed(piece)
    reader.end()
    assert len(found) == 1
    assert sum(tried) < 10 * 200_000


async def test_a_long_list_is_never_whole_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "WHOLE_BYTES", 100_000)
    item = json.dumps({"name": "a", "what": "x" * 10_000}).encode()

    def pieces() -> Iterable[bytes]:
        yield b'{"kind": "PodList", "items": ['
        for _ in range(1_000):
            yield item + b","
        yield item + b"]}"

    names: list[str] = []
    tracemalloc.start()
    try:
        answer = await read_list(arriving(pieces()), lambda one: names.append(one["name"]))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer == ({"kind": "PodList"}, b"")
    assert len(names) == 1_001
    assert most < 1_001 * len(item) / 5


async def test_a_short_list_that_is_known_is_not_read_again() -> None:
    data = json.dumps(DOCUMENT).encode()
    found: list[Any] = []
    answer = await read_list(arriving(cut(data, 100)), found.append)
    assert answer is not None
    assert found == ITEMS
    assert await read_list(arriving([data]), found.append, known=answer[1]) is None
    assert found == ITEMS
