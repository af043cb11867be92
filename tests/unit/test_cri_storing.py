"""What was seen in pods is on the disk before anybody is served by it; no disk holds up others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any

import pytest

from sds import files
from sds.clock import SystemClock
from sds.errors import WorkloadError
from sds.workload.cgroup import PodCgroup
from sds.workload.cri import attestor as attestor_module
from sds.workload.cri import pods as pods_module
from sds.workload.cri import storing as storing_module
from sds.workload.cri.attestor import CriAttestor
from sds.workload.cri.pods import SeenPods
from sds.workload.cri.runtime import DescribedContainer, Listed
from sds.workload.cri.settings import CriSettings, PodContents
from sds.workload.cri.storing import Storing
from sds.workload.peer import Peer
from sds.workload.proc import pod_roots
from tests.support.front_door import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

POD, SANDBOX, MAIN, MORE = "u1", "5a", "c0", "c1"
IMAGE = f"sha256:{32 * 'aa'}"


class PlayedRuntime:
    """A runtime with one pod, to which containers come."""

    def __init__(self) -> None:
        self.there = {MAIN: "main"}

    async def sandboxes(self) -> frozenset[str]:
        return frozenset({SANDBOX})

    async def containers(self, **_: str) -> tuple[Listed, ...]:
        return tuple(
            Listed(id=each, sandbox_id=SANDBOX, name=name, attempt=0, image=IMAGE, alive=True)
            for each, name in self.there.items()
        )

    async def sandbox(self, identifier: str) -> DescribedContainer:
        return described(identifier, pod_uid=POD)

    async def container(self, identifier: str) -> DescribedContainer:
        return described(identifier)


def described(identifier: str, pod_uid: str = "") -> DescribedContainer:
    linux = {"cgroupsPath": f"/{identifier}"}
    spec = {"process": {"user": {}}, "root": {}, "linux": linux, "annotations": {}}
    return DescribedContainer(pid=1, spec=spec, image="pause", pod_uid=pod_uid, created_at=1)


class Disk:
    """A disk that can stand still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes = threading.Event()
        self.goes.set()
        self.asked = 0
        real = files.replace_file

        def replace(*arguments: Any, **more: Any) -> None:
            self.asked += 1
            assert self.goes.wait(30)
            real(*arguments, **more)

        monkeypatch.setattr(pods_module, "replace_file", replace)


class Node:
    def __init__(self, folder: Path, *lists: PodContents) -> None:
        self.file = folder / "seen.json"
        self.runtime = PlayedRuntime()
        runtime: Any = self.runtime
        settings = CriSettings(pods=lists)
        self.seen = SeenPods(settings, self.file, started_ns=0)
        self.attestor = CriAttestor(
            runtime, self.seen, settings, roots=pod_roots({}), clock=SystemClock()
        )

    @contextlib.asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.attestor.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    async def digests(self, container: str = MAIN) -> frozenset[str]:
        with Peer(pid=1, uid=0, gid=0, groups=frozenset(), pidfd=None, start_time=None) as peer:
            group = PodCgroup(pod_uid=POD, container_id=container)
            found = await self.attestor._facts(peer, group)
        return found.values("cri:pod-digest")

    def on_disk(self) -> set[str]:
        if not self.file.exists():
            return set()
        return set(json.loads(self.file.read_bytes())["pods"][SANDBOX]["containers"])


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The containers have no processes here."""
    monkeypatch.setattr(CriAttestor, "_expect_same_namespaces", lambda *_: None)
    monkeypatch.setattr(Peer, "check", lambda _: None)
    monkeypatch.setattr(attestor_module, "_PATIENCE_SECONDS", 0.4)
    monkeypatch.setattr(attestor_module, "POLL_SECONDS", 0.05)


@pytest.fixture
async def node(tmp_path: Path) -> Node:
    """A node whose list has the pod's main container, and no other."""
    made = Node(tmp_path)
    pod = await made.seen.add_sandbox(SANDBOX, described(SANDBOX, POD), now_ns=1)
    (listed,) = await made.runtime.containers()
    digest = await made.seen.add_container(pod, listed, described(MAIN))
    contents = PodContents(sandbox=pod.digest, containers=(digest,))
    return Node(tmp_path, contents)


async def test_who_is_served_is_on_the_disk(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    async with node.looking():
        disk = Disk(monkeypatch)
        disk.goes.clear()
        try:
            with pytest.raises(WorkloadError, match="disk"):
                await node.digests()
            assert disk.asked
        finally:
            disk.goes.set()
        await until(node.on_disk)
        assert await node.digests()


async def test_a_disk_that_stands_still_stops_nothing_else(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node.looking():
        assert await node.digests()
        assert node.on_disk() == {MAIN}
        disk = Disk(monkeypatch)
        disk.goes.clear()
        try:
            node.runtime.there[MORE] = "no list has it"
            while await node.digests():  # the disk answers only after this
                await asyncio.sleep(0.01)
            assert node.on_disk() == {MAIN}
        finally:
            disk.goes.set()
        await until(lambda: node.on_disk() == {MAIN, MORE})


async def test_a_disk_that_is_full_is_said_and_stops_nobody(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with node.looking():

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pods_module, "replace_file", full)
        assert await node.digests()
        (said,) = (one for one in caplog.records if "cannot be stored" in one.message)
        assert "No space" in str(vars(said)["why"])


async def test_what_could_not_be_stored_is_not_taken_for_everything_by_the_next_agent(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the older file stayed, and a pod had its identity back without what it lacked."""
    monkeypatch.setattr(storing_module, "_AGAIN_SECONDS", 0.05)
    async with node.looking():
        assert await node.digests()
        assert node.on_disk() == {MAIN}
        with monkeypatch.context() as broken:

            def full(*_: Any, **__: Any) -> None:
                raise OSError(28, "No space left on device")

            broken.setattr(pods_module, "replace_file", full)
            node.runtime.there[MORE] = "no list has it"
            await until(lambda: not node.file.exists())
        await until(lambda: node.on_disk() == {MAIN, MORE})


async def test_who_is_served_in_the_middle_of_a_look_is_on_the_disk(node: Node) -> None:
    """Another container may be described for seconds before the look ends."""
    going = asyncio.Event()

    async def container(identifier: str) -> DescribedContainer:
        if identifier == MORE:
            await going.wait()
        return described(identifier)

    node.runtime.container = container  # type: ignore[method-assign]
    node.runtime.there[MORE] = "main"
    async with node.looking():
        await until(
            lambda: SANDBOX in node.seen.pods and MAIN in node.seen.pods[SANDBOX].containers
        )
        assert await node.digests()
        assert node.on_disk() == {MAIN}
        assert not going.is_set()
        going.set()


async def test_what_was_seen_is_written_although_the_agent_stops(node: Node) -> None:
    """Otherwise the next agent would be younger than its memory of the pod, for good."""
    pod = await node.seen.add_sandbox(SANDBOX, described(SANDBOX, POD), now_ns=1)
    (listed,) = await node.runtime.containers()
    await node.seen.add_container(pod, listed, described(MAIN))
    storing = Storing(node.seen, late=lambda: None)
    storing.note(MAIN)
    running = asyncio.create_task(storing.run())
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert node.on_disk() == {MAIN}


async def test_a_disk_that_stands_still_does_not_hold_up_the_end(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storing_module, "_MOMENT_SECONDS", 0.05)
    disk = Disk(monkeypatch)
    disk.goes.clear()
    try:
        storing = Storing(node.seen, late=lambda: None)
        storing.note(MAIN)
        running = asyncio.create_task(storing.run())
        await until(lambda: disk.asked)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    finally:
        disk.goes.set()


async def test_others_hear_of_what_a_caller_saw_who_left_before_it_was_stored(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, callers of that pod kept its identity until their next look, up to 30 s later."""
    told: list[None] = []
    node.attestor.listen(lambda: told.append(None))
    storing = asyncio.Event()

    async def settled(_: Storing) -> None:
        storing.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Storing, "settled", settled)
    caller = asyncio.create_task(node.attestor._look())
    await storing.wait()
    assert not told
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert told
