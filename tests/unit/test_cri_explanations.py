"""What people are told about their containers, however long their authors made them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from sds.errors import WorkloadError
from sds.threads import Threads
from sds.workload.cri import explanations as explanations_module
from sds.workload.cri.canonical import Surroundings, canonical
from sds.workload.cri.explanations import MOST_LINES, Explanations
from sds.workload.cri.pods import SeenContainer
from sds.workload.cri.runtime import DescribedContainer
from sds.workload.cri.settings import PodContents
from tests.support.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.workload.cri.runtime import Runtime

CONTAINER = "c0"
IMAGE = f"sha256:{32 * 'aa'}"
AROUND = Surroundings(pod_uid="u", sandbox_id="s", sandbox_pid=1)
MAIN = SeenContainer(name="main", attempt=0, image=IMAGE, digest=IMAGE, unmeasured=())


class SlowRuntime:
    """A runtime that takes two seconds to describe a container with these arguments."""

    def __init__(self, clock: FakeClock, *arguments: str) -> None:
        self.clock = clock
        self.arguments = arguments
        self.began: list[float] = []

    def spec(self) -> dict[str, Any]:
        process = {"user": {}, "args": list(self.arguments)}
        linux = {"cgroupsPath": f"/{CONTAINER}"}
        return {"process": process, "root": {}, "linux": linux, "annotations": {}}

    async def container(self, _identifier: str) -> DescribedContainer:
        self.began.append(self.clock.monotonic)
        await self.clock.sleep(2)
        return DescribedContainer(pid=1, spec=self.spec(), image="", pod_uid="", created_at=0)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work for threads is done in place, so that a fake clock sees a still world."""

    async def inline(_self: Threads, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    monkeypatch.setattr(Threads, "run", inline)


def asking(runtime: SlowRuntime) -> Explanations:
    played: Any = runtime
    real: Runtime = played
    return Explanations(real, clock=runtime.clock)


async def test_who_asks_again_and_again_gets_a_tenth_of_the_time() -> None:
    """Each answer takes the interpreter from everybody else for as long as it is made."""
    clock = FakeClock()
    runtime = SlowRuntime(clock, "x")
    explanations = asking(runtime)
    for _ in range(2):
        told = asyncio.create_task(explanations.of(CONTAINER, MAIN, AROUND, ()))
        await clock.until(told.done, seconds=30)
        assert 'arg "x"' in str(told.result())
    first, second = runtime.began
    assert second - first == pytest.approx(20, abs=0.1)


async def test_who_asks_while_too_many_do_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanations_module, "_TURN_SECONDS", 0.01)
    explanations = asking(SlowRuntime(FakeClock(), "x"))
    first = asyncio.create_task(explanations.of(CONTAINER, MAIN, AROUND, ()))
    await asyncio.sleep(0)
    with pytest.raises(WorkloadError, match="too many"):
        await explanations.of(CONTAINER, MAIN, AROUND, ())
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert not explanations._one.locked()


async def test_of_a_container_with_very_many_lines_those_that_differ_are_told() -> None:
    """An answer of a million lines takes the event loop a quarter of a second to encode."""
    clock = FakeClock()
    listed = SlowRuntime(clock, *(f"a{number}" for number in range(20_000)), "y" * 100_000)
    lines = canonical("main", IMAGE, listed.spec(), AROUND, container_id=CONTAINER).lines
    runtime = SlowRuntime(clock, *listed.arguments[:-1], "z" * 100_000)
    like = PodContents.model_construct(
        name="another-pod", containers=(), sandbox="", lines={IMAGE: lines}
    )
    told = asyncio.create_task(asking(runtime).of(CONTAINER, MAIN, AROUND, (like,)))
    await clock.until(told.done, seconds=30)
    shown = told.result()
    assert len(shown) < MOST_LINES
    # It may be the list of another pod, of which nobody here may read anything.
    assert shown[0] == f"# compared with the list {like.digest}"
    assert [line[:8] for line in shown[1:3]] == ["- arg …", '+ arg "z']
    assert shown[-1].endswith(" more lines")
    assert sum(map(len, shown)) < 10_000


def test_of_very_many_lines_that_differ_some_are_told() -> None:
    shown = explanations_module.bounded([f"+ {number}" for number in range(5000)])
    assert len(shown) == MOST_LINES + 1
    assert shown[-1] == "# 4000 more lines"
