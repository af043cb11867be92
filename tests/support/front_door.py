"""A front door with a real server, for tests, and processes that connect to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from sds.clock import SystemClock
from sds.errors import WorkloadError
from sds.identity import Identity, parse_trust_domain
from sds.transport.server import Server
from sds.unix_sockets import listening
from sds.workload.connection_caller import entitlement_of
from sds.workload.executables import Executables
from sds.workload.front_door import DoorLimits, FrontDoor
from sds.workload.mapping import Defaults, Matching, WorkloadRule
from sds.workload.recognition import Recogniser, Rules, Timing
from sds.workload.unix import UnixAttestor
from tests.support.process import Process, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

    from sds.workload.cgroup import PodRoots
    from sds.workload.entitlement import Entitlement
    from sds.workload.facts import Attestor

WHO = "/test.Who/Am"
FOLLOW = "/test.Who/Follow"
TRUST_DOMAIN = parse_trust_domain("example.org")


def rules(*matches: Mapping[str, Any], matching: Matching = Matching.FIRST) -> Rules:
    """Rules ``r0``, ``r1``, … with these conditions; a key ``spiffe_id`` replaces the template."""
    models = []
    for number, given in enumerate(matches):
        match = dict(given)
        spiffe_id = match.pop("spiffe_id", f"spiffe://{{trust_domain}}/r{number}")
        models.append(
            WorkloadRule.model_validate(
                {"name": f"r{number}", "match": match, "spiffe_id": spiffe_id}
            )
        )
    return Rules(
        rules=tuple(models), defaults=Defaults(trust_domain=TRUST_DOMAIN), matching=matching
    )


def unix() -> list[Attestor]:
    """The unix attestor alone."""
    return [UnixAttestor(Executables(SystemClock()))]


class Keeper:
    """Rotation for tests: remembers what is kept; certificates are there at once, unless held."""

    def __init__(self) -> None:
        self.kept: list[Identity] = []
        self.log: list[tuple[str, Identity]] = []
        self.rests: list[bool] = []
        self.ready = asyncio.Event()
        self.ready.set()

    def ensure(self, identity: Identity) -> None:
        self.kept.append(identity)
        self.log.append(("ensure", identity))

    def expect(self, identity: Identity) -> None:
        self.kept.append(identity)
        self.log.append(("expect", identity))

    def unexpect(self, identity: Identity) -> None:
        self.kept.remove(identity)
        self.log.append(("unexpect", identity))

    def release(self, identity: Identity, *, resting: bool = True) -> None:
        assert resting
        self.kept.remove(identity)
        self.log.append(("release", identity))

    def rest(self, identity: Identity, *, resting: bool) -> None:
        assert identity in self.kept
        self.rests.append(resting)

    async def until_ready(self, identity: Identity) -> None:
        assert identity in self.kept
        await self.ready.wait()


class Door:
    """A running front door."""

    def __init__(self, path: Path, door: FrontDoor, recogniser: Recogniser, keeper: Keeper) -> None:
        self.path = path
        self.door = door
        self.recogniser = recogniser
        self.keeper = keeper
        self.entitlements: list[Entitlement] = []
        self.server = Server()

    async def am(self, _request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        entitlement = await self._entitlement(context)
        return _ids(entitlement)

    async def follow(
        self, _request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """The identities now and after each change; ends with the entitlement."""
        entitlement = await self._entitlement(context)
        changed = asyncio.Event()
        stop = entitlement.listen(changed.set)
        try:
            while entitlement.ended is None:
                yield _ids(entitlement)
                await changed.wait()
                changed.clear()
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(entitlement.ended))
        finally:
            stop()

    async def _entitlement(self, context: Any) -> Entitlement:
        try:
            entitlement = await entitlement_of(context)
        except WorkloadError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        self.entitlements.append(entitlement)
        return entitlement


def _ids(entitlement: Entitlement) -> bytes:
    return " ".join(str(each.spiffe_id) for each in entitlement.current.identities).encode()


def handlers(door: Door) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        "test.Who",
        {
            "Am": grpc.unary_unary_rpc_method_handler(door.am),
            "Follow": grpc.unary_stream_rpc_method_handler(door.follow),
        },
    )


@contextlib.asynccontextmanager
async def front_door(
    folder: Path,
    *,
    attestors: Sequence[Attestor],
    rules: Rules,
    timing: Timing | None = None,
    limits: DoorLimits | None = None,
    more: Callable[[Door], Sequence[grpc.GenericRpcHandler]] = lambda _: (),
    roots: PodRoots | None = None,
) -> AsyncIterator[Door]:
    """A front door in ``folder`` with a server that answers who the caller is.

    ``more``: further services of that server.
    """
    path = folder / "sds.sock"
    listener = listening(path, 0o666)
    keeper = Keeper()
    recogniser = Recogniser(attestors=attestors, rules=rules, keeper=keeper, timing=timing)
    door = FrontDoor(listener, recogniser=recogniser, limits=limits, roots=roots)
    running = Door(path, door, recogniser, keeper)
    server = running.server
    server.add_generic_rpc_handlers((handlers(running), *more(running)))
    task = asyncio.create_task(door.run(server))
    try:
        yield running
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await server.stop(0)
        for attestor in attestors:
            if isinstance(attestor, UnixAttestor):
                await attestor.aclose()


async def ask(path: Path, timeout: float = 20.0) -> str:  # noqa: ASYNC109  of the RPC
    """Who this process is, in the door's words; a channel of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"unix:{path}", options=options) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(WHO)
        return (await call(b"", timeout=timeout)).decode()


def follow(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
    """A stream of who this process is."""
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(FOLLOW)
    return call(b"")


def descriptors() -> Counter[str]:
    """What this process has open, without what waits for a collection: how many of each target.

    A socket or a pipe is a target of its own, so a closed one never hides an open one.
    """
    gc.collect()
    return Counter(_targets())


def _targets() -> Iterator[str]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor that lists the folder
            yield str(descriptor.readlink())


async def nothing_stays_open(before: Counter[str]) -> None:
    """Wait until nothing is open that was not open before; what was may be closed since.

    gRPC closes the sockets of a client's channel a while after the channel.
    """
    await until(lambda: not descriptors() - before)


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Wait until the condition holds; fails after so many seconds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def executed(
    door: Door, client: Sequence[str], other: Path, *, name: str
) -> AsyncIterator[Process]:
    """A client that is recognised by this name, and loses it as it executes another program."""
    async with running(
        [*client, str(door.path), "exec", str(other)],
        env={"PYTHONHOME": sys.base_prefix},
        stdin=asyncio.subprocess.PIPE,
    ) as process:
        await process.line(f"is {name}")
        (entitlement,) = door.entitlements
        await process.tell()
        await until(lambda: entitlement.ended)
        yield process
