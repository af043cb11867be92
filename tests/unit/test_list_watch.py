"""Lists and watches of the API server: whatever it answers, only our error comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from sds.errors import KubernetesError
from sds.workload.kubernetes import watch
from sds.workload.kubernetes.watch import ListWatch
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

PATH = "/api/v1/services"
GOOD = b'{"items": [], "metadata": {"resourceVersion": "1"}}'


class Answering:
    """Answers every list, and every watch, with these bytes."""

    def __init__(self, *, document: bytes = GOOD, line: bytes = b"") -> None:
        self.document = document
        self.line = line
        self.lists = 0

    async def chunks(
        self, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        self.lists += 1
        yield self.document

    async def lines(
        self, path: str, params: Mapping[str, str], *, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        yield self.line


class Kept:
    def read(self, item: dict[str, Any]) -> bytes:
        name: str = item["metadata"]["name"]
        return name.encode()

    def replace(self, kept: Sequence[bytes]) -> bool:
        return True

    def apply(self, kind: str, item: dict[str, Any]) -> bool:
        return self.replace([self.read(item)])


def watching(server: Answering) -> ListWatch[bytes]:
    return ListWatch(server, FakeClock(), PATH, Kept())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 5_000,
        b"\xff",
        b'{"type": "ADDED", "object": null, "items": 7, "metadata": null}',
        b'{"type": "ADDED", "object": {"metadata": {"resourceVersion": "1", "name": "\\ud800"}}}',
        b'{"items": [{"metadata": {"name": "\\ud800"}}], "metadata": {"resourceVersion": "1"}}',
        b'{"items": [NaN], "metadata": {"resourceVersion": Infinity}}',
    ],
)
async def test_a_malformed_answer_is_our_error(text: bytes) -> None:
    with pytest.raises(KubernetesError, match=PATH):
        await watching(Answering(document=text))._list()
    with pytest.raises(KubernetesError, match=PATH):
        await watching(Answering(line=text))._watch("1")


@pytest.mark.parametrize(
    "items", [b"[]", b'[{"metadata": {"name": "a"}}, {"metadata": {"name": ""}}]']
)
async def test_a_list_that_does_not_end_is_our_error(
    monkeypatch: pytest.MonkeyPatch, items: bytes
) -> None:
    monkeypatch.setattr(watch, "_MOST_OBJECTS", 100)
    monkeypatch.setattr(watch, "_MOST_PAGES", 60)
    tail = b', "metadata": {"resourceVersion": "1", "continue": "more"}}'
    server = Answering(document=b'{"items": ' + items + tail)
    with pytest.raises(KubernetesError, match="does not end"):
        await watching(server)._list()
    assert server.lists == (61 if items == b"[]" else 51)
