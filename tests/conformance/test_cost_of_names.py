"""Names that a client chooses: their memory is bounded and counted, and rotation passes them by."""

from __future__ import annotations

import asyncio
import functools
import gc
import tracemalloc
from typing import TYPE_CHECKING

import pytest

from sds.errors import LimitError
from sds.serving.limits import ServingLimits
from sds.serving.names import NAME_OVERHEAD, NameBudget, NameLimits, name_cost
from sds.serving.service import ServingOptions
from tests.support.cost import counted_lines
from tests.support.door_client import DATA, frame
from tests.support.raw_client import STREAM, RawClient, connected, discovery
from tests.support.serving import TD, WEB, root, serving, svid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Processor time is counted: what traces lines for coverage would count too.
pytestmark = pytest.mark.no_cover

_PER_STREAM = 1_000
_RAISED = ServingLimits(
    requests_per_second=1e9,
    request_burst=1_000_000,
    names=NameLimits(workload=2**40, guaranteed=2**40, everybody=2**40),
)


def ask(client: RawClient, names: list[str]) -> int:
    """Watch these names on a new stream, in frames of any size."""
    data = discovery(*names)
    number = client.call(STREAM, data[:16_000])
    for start in range(16_000, len(data), 16_000):
        client.connection.sendall(frame(DATA, 0, number, data[start : start + 16_000]))
    return number


def some(stream: int, prefix: str = "x") -> list[str]:
    return [f"{prefix}{stream}.{number}" for number in range(_PER_STREAM)]


async def watch(client: RawClient, at: object, streams: int, prefix: str = "x") -> None:
    for stream in range(streams):
        await asyncio.to_thread(ask, client, some(stream, prefix))


async def test_what_a_name_costs_is_counted(tmp_path: Path) -> None:
    async with serving(tmp_path, options=ServingOptions(limits=_RAISED)) as at:
        with connected(at.socket) as client:
            await watch(client, at, 5, "warm")
            await until_watched(at, 5)
            gc.collect()
            tracemalloc.start()
            try:
                await watch(client, at, 20)
                await until_watched(at, 25)
                gc.collect()
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    counted = sum(name_cost(name) for stream in range(20) for name in some(stream))
    assert 0.3 * counted < held < counted, (held / 20_000, NAME_OVERHEAD)


async def until_watched(at: object, streams: int) -> None:
    async with asyncio.timeout(30):
        while True:
            (session,) = at.service.sessions() or (None,)  # type: ignore[attr-defined]  # a Serving
            if session is not None and session.watched() == streams * _PER_STREAM:
                return
            await asyncio.sleep(0.02)


async def lines_of(change: Callable[[], object]) -> tuple[int, int]:
    """Lines of Python that a change runs: in all turns of the loop after it, and in the longest."""
    most = 0
    with counted_lines() as lines:
        change()  # its own work counts with the first turn
        before = 0
        for _ in range(400):
            await asyncio.sleep(0)
            most = max(most, lines.count - before)
            before = lines.count
    return lines.count, most


@pytest.mark.parametrize("prefix", ["x", "spiffe://example.org/x", "outbound:"])
async def test_a_rotation_does_not_look_at_names_that_it_cannot_concern(
    tmp_path: Path, prefix: str
) -> None:
    counted: list[list[int]] = []
    longest: list[int] = []
    for streams in (1, 20):
        folder = tmp_path / str(streams)
        folder.mkdir()
        async with serving(folder, options=ServingOptions(limits=_RAISED)) as at:
            with connected(at.socket) as client, connected(at.socket) as reader:
                await asyncio.to_thread(reader.call, STREAM, discovery("default"))
                await asyncio.to_thread(reader.read_until, b"END PRIVATE KEY")
                await watch(client, at, streams, prefix)
                await until_watching(at, streams * _PER_STREAM)
                totals: list[int] = []
                for change in (
                    functools.partial(at.store.put_svid, svid(WEB)),
                    functools.partial(at.service.refresh, trust_changed=False),
                ):
                    total, most = await lines_of(change)
                    totals.append(total)
                    longest.append(most)
                counted.append(totals)
                # Policy and trust may concern each name: they are looked at some in a turn.
                roots = [root("1").der, root("2").der]
                longest += [
                    (await lines_of(functools.partial(at.store.put_bundle, TD, roots)))[1],
                    (await lines_of(at.service.refresh))[1],
                ]
                await asyncio.to_thread(reader.read_until, b"END PRIVATE KEY")
    for few, many in zip(*counted, strict=True):
        assert many < few + 10_000, counted  # 19,000 names more
    assert max(longest) < 100_000, longest  # one stream at a time


async def until_watching(at: object, names: int) -> None:
    async with asyncio.timeout(60):
        while not any(
            one.watched() >= names
            for one in at.service.sessions()  # type: ignore[attr-defined]  # a Serving
        ):
            await asyncio.sleep(0.02)


async def test_one_workload_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    limits = ServingLimits(
        names=NameLimits(workload=3_000_000, guaranteed=10_000, everybody=10_000_000)
    )
    async with serving(tmp_path, options=ServingOptions(limits=limits)) as at:
        with connected(at.socket) as client:
            for stream in range(8):
                await asyncio.to_thread(ask, client, some(stream))
            await asyncio.to_thread(client.read_until, b"memory")
        async with asyncio.timeout(10):
            while at.service.sessions():
                await asyncio.sleep(0.02)
        assert at.service._names.held("web") == 0
        with connected(at.socket) as client:
            await asyncio.to_thread(client.call, STREAM, discovery("default"))
            await asyncio.to_thread(client.read_until, b"END PRIVATE KEY")


def test_a_workload_within_its_share_is_never_refused() -> None:
    budget = NameBudget(NameLimits(workload=1000, guaranteed=100, everybody=1500))
    budget.take("a", 900)
    budget.take("b", 600)
    with pytest.raises(LimitError):
        budget.take("b", 1)
    for name in (f"small {number}" for number in range(50)):
        budget.take(name, 100)
        with pytest.raises(LimitError):
            budget.take(name, 1)
    budget.give_back("a", 900)
    assert budget.held("a") == 0
