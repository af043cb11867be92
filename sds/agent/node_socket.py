"""Opens the node-wide socket: attestors, recognition, front door and the server that it feeds.

Owns the order of starting and ending. Invariants: no connection is accepted before everything is
ready to serve it; at the end, first no new connection is accepted, then the server tells its
streams, and then connections are closed and the attestors end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final, Protocol

from sds.agent.csi import csi_driver
from sds.supervision import supervised
from sds.workload.attestors import ATTESTORS, NodeContext, attestor_kind
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from sds.workload.front_door import DoorLimits, FrontDoor
from sds.workload.minting_ahead import AheadKeeper, AheadLimits, Foresees, MintingAhead
from sds.workload.proc import pod_roots
from sds.workload.recognition import Recogniser, Timing
from sds.workload.socket_name import NODE_WIDE

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from sds.agent.node_settings import NodeSettings
    from sds.clock import Clock
    from sds.identity import Identity
    from sds.secrets.store import SecretStore
    from sds.transport.server import Server
    from sds.workload.cgroup import PodRoots
    from sds.workload.cri.settings import PodContents
    from sds.workload.facts import Attestor
    from sds.workload.recognition import Rules

_FORESEEN: Final = frozenset({"kubernetes", "socket"})
"""The attestors whose facts, except those of the container, are known before a process connects."""


class RotationPort(AheadKeeper, Protocol):
    """Rotation, as the node socket uses it."""

    def ensure(self, identity: Identity) -> None:
        """Keep a certificate of this identity."""
        ...

    def release(self, identity: Identity, *, resting: bool) -> None:
        """Give up the certificate of this identity, which rests."""
        ...

    def rest(self, identity: Identity, *, resting: bool) -> None:
        """Keep a certificate without renewing it, or renew it again."""
        ...


class StoreKeeper:
    """Joins rotation and store, as recognition uses them."""

    def __init__(self, rotation: RotationPort, store: SecretStore) -> None:
        self._rotation = rotation
        self._store = store

    def ensure(self, identity: Identity) -> None:
        self._rotation.ensure(identity)

    def release(self, identity: Identity) -> None:
        self._rotation.release(identity, resting=True)

    def rest(self, identity: Identity, *, resting: bool) -> None:
        self._rotation.rest(identity, resting=resting)

    async def until_ready(self, identity: Identity) -> None:
        changed = asyncio.Event()
        stop = self._store.listen(lambda _: changed.set())
        try:
            while self._store.svid(identity) is None:
                await changed.wait()
                changed.clear()
        finally:
            stop()


class NodeSocket:
    """The node-wide socket; :meth:`open` opens it.

    Args:
        settings: the socket's settings.
        rules: say which callers may have which identities.
        listener: a bound and listening socket, which is closed at the end.
        rotation: keeps the certificates of the callers' identities.
        store: has the certificates.
        server: makes the server.
        clock: time.
        environment: where Kubernetes says its addresses.
        directory: of our own, for what attestors remember.
        listed: the pods that the signed policy in force lists.
    """

    def __init__(
        self,
        settings: NodeSettings,
        rules: Rules,
        *,
        listener: socket.socket,
        rotation: RotationPort,
        store: SecretStore,
        server: Callable[[], Awaitable[Server]],
        clock: Clock,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        listed: Callable[[], tuple[PodContents, ...]] = tuple,
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._listener = listener
        self._keeper = StoreKeeper(rotation, store)
        self._rotation = rotation
        self.ahead: MintingAhead | None = None
        """Mints for pods that may ask, once the socket is open; None if not configured."""
        self._make_server = server
        self._clock = clock
        self._directory = directory
        self._listed = listed
        self._environment = os.environ if environment is None else environment
        self._door: FrontDoor | None = None
        self._recogniser: Recogniser | None = None
        self._roots: PodRoots | None = None
        self._attestors: Sequence[Attestor] = ()

    def replace_rules(self, rules: Rules) -> None:
        """Use new rules of configuration or policy, and look at every caller again."""
        self._rules = rules
        if self._recogniser is not None:
            self._recogniser.replace_rules(rules)
        if self.ahead is not None:
            self.ahead.look_again()

    @property
    def accepted(self) -> int:
        return self._door.statistics.accepted if self._door else 0

    @property
    def refused(self) -> Mapping[str, int]:
        return dict(self._door.statistics.refused) if self._door else {}

    def notices(self) -> tuple[str, ...]:
        return tuple(said for each in self._attestors for said in each.notices())

    @contextlib.asynccontextmanager
    async def open(self, *, grace_seconds: Callable[[], float]) -> AsyncIterator[None]:
        """Serve while the block runs; then streams have ``grace_seconds``, asked then, to end.

        Raises:
            ConfigurationError: the settings do not fit this machine.
        """
        async with self._opened() as attestors:
            self._attestors = attestors
            timing = Timing(
                hold=self._settings.hold.total_seconds(),
                recheck=self._settings.recheck.total_seconds(),
                linger=self._settings.linger.total_seconds(),
            )
            self._recogniser = Recogniser(
                attestors=attestors, rules=self._rules, keeper=self._keeper, timing=timing
            )
            door = self._door = FrontDoor(
                self._listener,
                recogniser=self._recogniser,
                roots=self._roots,
                limits=DoorLimits(
                    connections=self._settings.connections,
                    connections_per_owner=self._settings.connections_per_owner,
                ),
            )
            server = await self._make_server()
            async with contextlib.AsyncExitStack() as stack:
                tasks = await stack.enter_async_context(asyncio.TaskGroup())
                running = tasks.create_task(door.run(server), name="front door")
                if (ahead := self._minting_ahead(self._recogniser)) is not None:
                    run = supervised("minting ahead", ahead.run, clock=self._clock)
                    minting = tasks.create_task(run, name="minting ahead")
                    stack.callback(minting.cancel)
                try:
                    if self._settings.csi is not None:
                        await stack.enter_async_context(
                            csi_driver(self._settings.csi, door, clock=self._clock)
                        )
                    yield
                finally:
                    door.stop_accepting()
                    await server.stop(grace_seconds())
                    running.cancel()

    def _minting_ahead(self, recogniser: Recogniser) -> MintingAhead | None:
        settings = self._settings.ahead
        foresees = next((each for each in self._attestors if isinstance(each, Foresees)), None)
        if settings is None or foresees is None:
            return None
        others = [each for each in self._settings.attestors if each not in _FORESEEN]
        known = frozenset[Selector]()
        if "socket" in self._settings.attestors:
            known = frozenset({Selector("socket:name", NODE_WIDE)})
        limits = AheadLimits(
            identities=settings.identities, patience=settings.patience.total_seconds()
        )
        self.ahead = MintingAhead(
            foresees,
            rules=lambda: self._rules,
            known=Facts(selectors=known),
            of_a_process={kind for each in others for kind in ATTESTORS[each].types},
            keeper=self._rotation,
            limits=limits,
            clock=self._clock,
        )
        recogniser.wanted.when_wanted(self.ahead.wanted)
        return self.ahead

    @contextlib.asynccontextmanager
    async def _opened(self) -> AsyncIterator[Sequence[Attestor]]:
        names = self._settings.attestors
        if any(ATTESTORS[name].pods for name in names):
            kubernetes = self._settings.kubernetes
            self._roots = pod_roots(
                self._environment,
                cgroup_root=kubernetes.cgroup_root,
                runtime_cgroup=kubernetes.runtime_cgroup,
            )
        context = NodeContext(
            socket=NODE_WIDE,
            settings=self._settings,
            roots=self._roots,
            directory=self._directory,
            listed=self._listed,
            environment=self._environment,
            clock=self._clock,
        )
        async with contextlib.AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(attestor_kind(name).open(context)) for name in names
            ]
