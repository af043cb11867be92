"""The front door with a real gRPC server and real sockets, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from sds.errors import KubernetesError
from sds.transport.budget import CONNECTION_BYTES
from sds.unix_sockets import listening
from sds.workload import front_door as module
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from sds.workload.front_door import ENDS_A_TURN, RECOGNITION_BYTES, DoorLimits, FrontDoor
from sds.workload.mapping import Matching
from sds.workload.recognition import Timing
from tests.support.front_door import (
    ask,
    descriptors,
    follow,
    front_door,
    nothing_stays_open,
    rules,
    unix,
    until,
)
from tests.support.process import running
from tests.support.turn_counter import turns

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sds.workload.peer import Peer

OURS = {"unix:uid": str(os.geteuid())}
FAST = Timing(hold=0.3, retry_first=0.02, retry_most=0.05, recheck=0.1, linger=0.05, replace=0.3)


class Told:
    """An attestor that says what the test wants."""

    name = "told"
    costly: frozenset[str] = frozenset()

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._listener: Callable[[], None] = lambda: None

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        return self.facts

    def notices(self) -> tuple[str, ...]:
        return ()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        self._listener = listener
        return lambda: None

    def tell(self, facts: Facts) -> None:
        self.facts = facts
        self._listener()


def namespace(value: str, *services: str) -> Facts:
    return Facts(
        selectors=frozenset({Selector("k8s:ns", value)}),
        services=frozenset((value, service) for service in services),
        title=value,
    )


async def test_a_caller_is_known_by_the_kernel(tmp_path: Path) -> None:
    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door:
        assert await ask(door.path) == "spiffe://example.org/r0"
        assert [str(each.spiffe_id) for each in door.keeper.kept] == ["spiffe://example.org/r0"]


async def test_a_door_that_the_kernel_cannot_watch_opens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the pause for lack of descriptors, the kernel may lack memory (epoll_ctl(2))."""
    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door:
        assert await ask(door.path) == "spiffe://example.org/r0"
        watch, failed = door.door._watch, [0]

        def sometimes(listener: Any) -> None:
            if failed[0] < 2:
                failed[0] += 1
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            watch(listener)

        monkeypatch.setattr(door.door, "_watch", sometimes)
        (listener,) = door.door._listeners
        door.door._pause(OSError(errno.EMFILE, os.strerror(errno.EMFILE)), listener)
        assert await ask(door.path) == "spiffe://example.org/r0"
        assert failed == [2]


async def test_all_matches_are_given_in_order(tmp_path: Path) -> None:
    both = rules(OURS, {"unix:uid": "*"}, matching=Matching.ALL)
    async with front_door(tmp_path, attestors=unix(), rules=both) as door:
        assert await ask(door.path) == "spiffe://example.org/r0 spiffe://example.org/r1"


async def test_a_caller_that_nothing_matches_is_held_then_refused(tmp_path: Path) -> None:
    nobody = rules({"unix:uid": "4242"})
    attestors = unix()
    async with front_door(tmp_path, attestors=attestors, rules=nobody, timing=FAST) as door:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(door.path)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        text = caught.value.details() or ""
        assert f"unix:uid:{os.geteuid()}" in text
        assert "4242" not in text  # what would have matched is not said
        assert door.keeper.log == []


async def test_a_held_caller_is_answered_the_moment_a_rule_matches(tmp_path: Path) -> None:
    slow = Timing(hold=20, retry_first=15, recheck=15)
    nobody = rules({"unix:uid": "4242"})
    attestors = unix()
    async with front_door(tmp_path, attestors=attestors, rules=nobody, timing=slow) as door:
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(ask(door.path))
            await until(lambda: door.door.connections)
            door.recogniser.replace_rules(rules(OURS))
        assert asking.result() == "spiffe://example.org/r0"


async def test_something_unknown_changes_nobody_who_was_recognised(tmp_path: Path) -> None:
    told = Told(namespace("shop"))
    async with front_door(
        tmp_path, attestors=[told], rules=rules({"k8s:ns": "shop"}), timing=FAST
    ) as door:
        await ask(door.path)
        async with grpc.aio.insecure_channel(f"unix:{door.path}") as channel:
            stream = follow(channel)
            assert await stream.read() == b"spiffe://example.org/r0"
            told.tell(Facts(unknown={"k8s:": KubernetesError("down", reason="kubelet")}))
            await asyncio.sleep(0.25)  # at least two rechecks
            assert door.entitlements[-1].ended is None
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(door.path)  # a new caller is not known
            assert "kubelet" in (caught.value.details() or "")
            stream.cancel()


async def test_a_caller_whose_rule_goes_loses_its_stream(tmp_path: Path) -> None:
    told = Told(namespace("shop"))
    async with (
        front_door(
            tmp_path, attestors=[told], rules=rules({"k8s:ns": "shop"}), timing=FAST
        ) as door,
        grpc.aio.insecure_channel(f"unix:{door.path}") as channel,
    ):
        stream = follow(channel)
        assert await stream.read() == b"spiffe://example.org/r0"
        door.recogniser.replace_rules(rules({"k8s:ns": "other"}))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        # On the same connection a new stream is held and answered when a rule matches again.
        door.recogniser.replace_rules(rules({"k8s:ns": "shop"}))
        again = follow(channel)
        assert await again.read() == b"spiffe://example.org/r0"
        again.cancel()


async def test_a_changed_identity_replaces_the_old_one_only_when_it_can_be_served(
    tmp_path: Path,
) -> None:
    told = Told(namespace("shop"))
    timing = Timing(hold=5, recheck=5, replace=5, linger=0)
    async with (
        front_door(
            tmp_path, attestors=[told], rules=rules({"k8s:ns": "shop"}), timing=timing
        ) as door,
        grpc.aio.insecure_channel(f"unix:{door.path}") as channel,
    ):
        stream = follow(channel)
        await stream.read()
        entitlement = door.entitlements[-1]
        (before,) = entitlement.current.identities
        door.keeper.ready.clear()
        told.tell(namespace("shop", "web"))
        await until(lambda: len(door.keeper.kept) == 2)
        assert entitlement.current.identities == (before,)
        door.keeper.ready.set()
        await stream.read()
        (after,) = entitlement.current.identities
        assert "web.shop.svc.cluster.local" in after.dns_names
        assert after.spiffe_id == before.spiffe_id
        await until(lambda: door.keeper.kept == [after])
        stream.cancel()


async def test_an_identity_lingers_for_a_caller_that_comes_back(tmp_path: Path) -> None:
    timing = Timing(linger=0.5)
    async with front_door(
        tmp_path,
        attestors=unix(),
        rules=rules(OURS),
        timing=timing,
    ) as door:
        for _ in range(3):
            await ask(door.path)
            await until(lambda: not door.door.connections)
        assert [what for what, _ in door.keeper.log] == ["ensure"]
        await until(lambda: not door.keeper.kept)
        assert [what for what, _ in door.keeper.log] == ["ensure", "release"]
        # It is not renewed while nobody may have it: its pod may be gone.
        assert door.keeper.rests == [True, False, True, False, True]


async def test_the_server_serves_nobody_who_did_not_come_through_the_door(tmp_path: Path) -> None:
    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door:
        aside = tmp_path / "aside.sock"
        await door.server.listen(listening(aside, 0o600))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(aside)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert "front door" in (caught.value.details() or "")


async def test_shares_of_connections(tmp_path: Path) -> None:
    limits = DoorLimits(connections=4, connections_per_owner=2)
    async with front_door(
        tmp_path,
        attestors=unix(),
        rules=rules(OURS),
        limits=limits,
    ) as door:
        held = [await asyncio.open_unix_connection(str(door.path)) for _ in range(2)]
        await until(lambda: door.door.connections == 2)
        reader, writer = await asyncio.open_unix_connection(str(door.path))
        assert b"2 connections already" in await reader.read()  # the inner server never saw it
        writer.close()
        await writer.wait_closed()
        assert door.door.statistics.refused["connection_limit"] == 1
        for _, other in held:
            other.close()
            await other.wait_closed()
        await until(lambda: not door.door.connections)
        assert await ask(door.path) == "spiffe://example.org/r0"


async def test_a_recognised_caller_counts_with_its_recognition(tmp_path: Path) -> None:
    """Else the connections of many pods take twice the memory that all owners may have."""
    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door:
        everybody = door.server.budgets.all
        async with grpc.aio.insecure_channel(f"unix:{door.path}") as channel:
            assert await follow(channel).read() == b"spiffe://example.org/r0"
            assert everybody.held > CONNECTION_BYTES + RECOGNITION_BYTES
        await until(lambda: not everybody.connections)
        await until(lambda: not door.door.connections)
        assert everybody.held == 0


async def test_owners_that_are_many_together_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the pods of one tenant would: who has the most makes room."""
    names = iter(("pod a", "pod a", "pod a", "pod b", "pod b", "pod b", "pod c", "pod c"))
    monkeypatch.setattr(module, "owner_of", lambda _peer, _roots: next(names))
    limits = DoorLimits(connections=6, connections_per_owner=3)
    async with (
        front_door(tmp_path, attestors=unix(), rules=rules(OURS), limits=limits) as door,
        contextlib.AsyncExitStack() as stack,
    ):
        for count in range(1, 7):
            _, writer = await asyncio.open_unix_connection(str(door.path))
            stack.callback(writer.close)
            await until(functools.partial(lambda n: door.door.connections == n, count))
        assert await ask(door.path) == "spiffe://example.org/r0"  # pod c is served
        assert door.door.statistics.refused == {"connection_limit": 1}  # the one that ends for it
        assert [vars(one)["why"].message.split()[1] for one in caplog.records] == ["a"]
        await until(lambda: door.door.connections == 5)
        assert sorted(map(len, door.door._owners.values())) == [2, 3]


async def test_accepting_takes_the_same_however_many_sockets_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod may have sixteen volumes, each with a socket."""

    def accepting(*_: Any, **__: Any) -> None:
        counter.work()

    sockets = 8
    async with (
        front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door,
        contextlib.AsyncExitStack() as stack,
    ):
        monkeypatch.setattr(FrontDoor, "_accepted", accepting)
        for number in range(sockets):
            path = tmp_path / f"{number}.sock"
            listener = listening(path, 0o600)
            for _ in range(10):  # they wait in the queue
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(path))
            stack.callback(door.door.listen(listener, pod_uid="x"))
        async with turns() as counter:
            await until(lambda: sum(counter.seen.values()) == 10 * sockets)
        assert counter.most <= sockets + 2


async def test_connections_of_a_process_that_ends_end_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = (
        "import socket, sys\n"
        "opened = [socket.socket(socket.AF_UNIX) for _ in range(100)]\n"
        "for one in opened: one.connect(sys.argv[1])\n"
        "print('connected', flush=True); input()"
    )
    forget = FrontDoor._forget

    def forgetting(door: FrontDoor, connection: Any) -> None:
        counter.happened()
        forget(door, connection)

    monkeypatch.setattr(FrontDoor, "_forget", forgetting)
    async with (
        front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door,
        running(
            [sys.executable, "-S", "-c", opens, str(door.path)], stdin=asyncio.subprocess.PIPE
        ) as process,
        turns() as counter,
    ):
        await process.line("connected")
        await until(lambda: door.door.connections == 100)
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not door.door.connections)
        assert sum(counter.seen.values()) == 100
        assert counter.most <= 2 * ENDS_A_TURN


async def test_nothing_is_left_when_callers_leave_in_every_way(tmp_path: Path) -> None:
    async with front_door(
        tmp_path,
        attestors=unix(),
        rules=rules(OURS),
        timing=FAST,
    ) as door:
        await ask(door.path)
        await until(lambda: not door.door.connections)
        gc.collect()
        before = descriptors()
        for way in ("close", "half", "reset", "garbage"):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(0)
            client.connect(str(door.path))
            if way == "garbage":
                client.send(b"GET / HTTP/1.1\r\n\r\n")
            if way == "half":
                client.shutdown(socket.SHUT_WR)
                loop = asyncio.get_running_loop()
                while await loop.sock_recv(client, 65536):
                    pass  # what gRPC greets with, then its end
            if way == "reset":
                await asyncio.sleep(0.02)
            client.close()
        await ask(door.path)
        await until(lambda: not door.door.connections)
        await nothing_stays_open(before)


async def test_cancelling_the_door_ends_every_connection_and_releases_everything(
    tmp_path: Path,
) -> None:
    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door:
        clients = [await asyncio.open_unix_connection(str(door.path)) for _ in range(3)]
        await until(lambda: door.keeper.kept)
    left = list(door.keeper.kept), door.door.connections
    assert left == ([], 0)
    for reader, writer in clients:
        while await reader.read(65536):
            pass
        writer.close()
        await writer.wait_closed()
