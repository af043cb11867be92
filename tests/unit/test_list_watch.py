"""Lists and watches of the API server: whatever it answers, only our error comes out."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest

from sds.errors import KubernetesError
from sds.workload.kubernetes import scheduled as scheduled_pods
from sds.workload.kubernetes import selectors, services, watch
from sds.workload.kubernetes.scheduled import ScheduledPods
from sds.workload.kubernetes.services import ServiceWatch
from sds.workload.kubernetes.watch import ListAgainError, ListWatch
from tests.support import cost as costs
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

PATH = "/api/v1/services"
BOOKMARK = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "2"}}}'
GOOD = b'{"kind": "ServiceList", "items": [], "metadata": {"resourceVersion": "1"}}'


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
    kind = "ServiceList"

    def begin(self) -> None:
        pass

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
        GOOD.replace(b"[]", b'[{"metadata": {"name": "\\ud800"}}]'),
        GOOD.replace(b"[]", b"[NaN]").replace(b'"1"', b"Infinity"),
    ],
)
async def test_a_malformed_answer_is_our_error(text: bytes) -> None:
    with pytest.raises(KubernetesError, match=PATH):
        await watching(Answering(document=text))._list()
    with pytest.raises(KubernetesError, match=PATH):
        await watching(Answering(line=text))._watch("1")


@pytest.mark.parametrize("kind", [b'"kind": "PodList", ', b'"kind": null, ', b""])
async def test_an_answer_to_another_question_empties_no_collection(kind: bytes) -> None:
    """A proxy that confuses requests would take every pod from the nodes of a cluster."""
    document = GOOD.replace(b'"kind": "ServiceList", ', kind)
    with pytest.raises(KubernetesError, match="not a ServiceList"):
        await watching(Answering(document=document))._list()


@pytest.mark.parametrize(
    "items", [b"[]", b'[{"metadata": {"name": "a"}}, {"metadata": {"name": ""}}]']
)
async def test_a_list_that_does_not_end_is_our_error(
    monkeypatch: pytest.MonkeyPatch, items: bytes
) -> None:
    monkeypatch.setattr(watch, "MOST_OBJECTS", 100)
    monkeypatch.setattr(watch, "_MOST_PAGES", 60)
    tail = b', "metadata": {"resourceVersion": "1", "continue": "more"}}'
    server = Answering(document=b'{"kind": "ServiceList", "items": ' + items + tail)
    with pytest.raises(KubernetesError, match="does not end"):
        await watching(server)._list()
    assert server.lists == (61 if items == b"[]" else 51)


class Throttled(Answering):
    """Says "later" so many times, and then ends each watch at once."""

    def __init__(self, refusals: Sequence[float], *, line: bytes = BOOKMARK) -> None:
        super().__init__(line=line)
        self.refusals = list(refusals)
        self.asked: list[float] = []
        self.clock = FakeClock()

    async def chunks(
        self, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        self.asked.append(self.clock.now().monotonic)
        if self.refusals:
            refused = KubernetesError("429", reason="kubernetes_api")
            refused.later = self.refusals.pop(0)
            raise refused
        yield self.document


@contextlib.asynccontextmanager
async def followed(server: Throttled) -> AsyncIterator[ListWatch[bytes]]:
    watched = ListWatch(server, server.clock, PATH, Kept())
    running = asyncio.create_task(watched.run())
    try:
        yield watched
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_server_that_says_later_is_left_alone_until_then() -> None:
    server = Throttled([20.0, 0.0, 1e6])
    async with followed(server) as watched:
        await server.clock.until(lambda: len(server.asked) == 4 and watched.error is None)
    gaps = [after - before for before, after in itertools.pairwise(server.asked)]
    assert 20 <= gaps[0] <= 25
    assert gaps[1] < 1, "no number: the pause is our own"
    assert gaps[2] < 70, "a server does not silence us for days"


def has(found: Sequence[float], count: int) -> bool:
    return len(found) >= count


async def test_a_watch_that_the_server_ends_again_and_again_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = b'{"type": "ERROR", "object": {"code": %d, "message": "etcd has no leader"}}'
    for code, lines in ((500, 1), (410, 0)):
        caplog.clear()
        server = Throttled([], line=ended % code)
        async with followed(server):
            await server.clock.until(functools.partial(has, server.asked, 20))
        assert len(caplog.records) == lines
        assert server.asked[-1] - server.asked[-2] >= 2.5, "the pause grows all the same"


async def test_a_collection_may_ask_for_a_list() -> None:
    class Lacking(Kept):
        def apply(self, kind: str, item: dict[str, Any]) -> bool:
            raise ListAgainError

    line = b'{"type": "DELETED", "object": {"metadata": {"resourceVersion": "2", "name": "x"}}}'
    watched = ListWatch(Answering(line=line), FakeClock(), PATH, Lacking())
    assert await watched._watch("1") is None
    assert watched.error is None


class Flapping(Answering):
    """Its one Service gets another selector as often as somebody can write to the API."""

    async def lines(
        self, path: str, params: Mapping[str, str], *, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        for number in range(1_000):
            metadata = {"resourceVersion": str(number), "namespace": "shop", "name": "web"}
            item = {"metadata": metadata, "spec": {"selector": {"app": str(number)}}}
            yield json.dumps({"type": "MODIFIED", "object": item}).encode()
            await asyncio.sleep(0)
        await asyncio.Event().wait()


async def test_who_changes_a_service_again_and_again_has_nobody_looked_at_so_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each change is a reason to look at every caller of every node again."""
    monkeypatch.setattr(services, "APART_SECONDS", 0.2)
    watched = ServiceWatch(Flapping(), FakeClock())
    told: list[frozenset[tuple[str, str]]] = []

    def listener() -> None:
        told.append(watched._index.selecting("shop", {"app": "999"}))

    watched.listen(listener)
    running = asyncio.create_task(watched.run())
    try:
        async with asyncio.timeout(20):
            while not told or not told[-1]:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert len(told) < 20, "at once, and what came since, but not each change"


def service(namespace: str, name: str = "web") -> dict[str, Any]:
    selector = {"app": "x" * 1000}
    return {"metadata": {"namespace": namespace, "name": name}, "spec": {"selector": selector}}


def scheduled(uid: str) -> dict[str, Any]:
    metadata = {"uid": uid, "namespace": "shop"}
    return {"metadata": metadata, "spec": {"nodeName": "n", "serviceAccountName": "web"}}


def test_a_watch_tells_of_no_more_than_a_list_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that adds without end had all of it kept."""
    monkeypatch.setattr(services, "MOST_OBJECTS", 100)
    monkeypatch.setattr(scheduled_pods, "MOST_OBJECTS", 100)
    index, pods = services.ServiceIndex(), ScheduledPods()
    for number in range(100):
        index.apply("ADDED", service(f"n{number}"))
        pods.apply("ADDED", scheduled(f"u{number}"))
    pods.apply("MODIFIED", scheduled("u0"))  # it is there already
    with pytest.raises(ListAgainError):
        index.apply("MODIFIED", service("n100"))
    with pytest.raises(ListAgainError):
        pods.apply("MODIFIED", scheduled("u100"))


@pytest.mark.parametrize("name", [1, None, "x" * 254, "\udcff", "ä"])
def test_what_is_no_name_is_not_kept(name: Any) -> None:
    for apply, item in (
        (services.ServiceIndex().apply, service(name)),
        (services.ServiceIndex().apply, service("shop", name)),
        (ScheduledPods().apply, scheduled(name)),
    ):
        with pytest.raises((TypeError, ValueError)):
            apply("ADDED", item)


def test_a_service_costs_the_same_however_many_namespaces_are_overfull(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With 20,000 of them, 8 MiB of events held the event loop for 20 s."""
    monkeypatch.setattr(selectors, "MOST", 100_000)
    monkeypatch.setattr(selectors, "_ROOM", 6_000)

    def cost(there: int) -> int:
        index = services.ServiceIndex()
        for number in range(there):
            index.apply("ADDED", service(f"n{number}"))
        assert len(index.overfull) > there - 100
        return costs.lines(lambda: [index.apply("ADDED", service("n0")) for _ in range(10)])

    assert cost(2_000) <= cost(200) + 50


async def test_others_have_their_turn_while_events_come() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    class Flood(Answering):
        async def lines(
            self, path: str, params: Mapping[str, str], *, idle_seconds: float
        ) -> AsyncIterator[bytes]:
            for _ in range(1_000):
                yield BOOKMARK

    running = asyncio.create_task(others())
    assert await watching(Flood())._watch("1") == "2"
    running.cancel()
    assert turns >= 9
