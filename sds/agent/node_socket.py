"""Opens the node-wide socket: attestors, recognition, front door and the server that it feeds.

Owns the order of starting and ending. Invariants: nobody is accepted before everything is there to
serve them; at the end nobody new is taken, the server tells its streams, and only then are
connections closed and the attestors ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sds.agent.csi import csi_driver
from sds.agent.node_settings import AttestorName, NodeSettings
from sds.serving.workload_api import WorkloadApi
from sds.supervision import supervised
from sds.workload.connected import entitlement_of
from sds.workload.executables import ExecutableLimits, Executables
from sds.workload.front_door import DoorLimits, FrontDoor
from sds.workload.kubernetes.attestor import KubernetesAttestor
from sds.workload.kubernetes.pod_list import PodList
from sds.workload.kubernetes.services import ServiceWatch
from sds.workload.kubernetes.settings import api_server, kubelet_server
from sds.workload.proc import pod_roots
from sds.workload.recognition import Recogniser, SocketAttestor, Timing
from sds.workload.unix import UnixAttestor
from sds.workload.whoami import WhoamiService

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from sds.clock import Clock
    from sds.csi.driver import Driver
    from sds.identity import Identity
    from sds.secrets.store import SecretStore
    from sds.transport.server import Server
    from sds.workload.cgroup import PodRoots
    from sds.workload.facts import Attestor
    from sds.workload.recognition import Rules

SOCKET_NAME: Final = "node"
"""``socket:name`` of every caller of this socket."""


class RotationPort(Protocol):
    """Rotation, as the node socket uses it."""

    def ensure(self, identity: Identity) -> None:
        """Keep a certificate of this identity."""
        ...

    def release(self, identity: Identity) -> None:
        """No longer keep one."""
        ...


class StoreKeeper:
    """Rotation and store together, as recognition sees them."""

    def __init__(self, rotation: RotationPort, store: SecretStore) -> None:
        """``rotation`` fills ``store``."""
        self._rotation = rotation
        self._store = store

    def ensure(self, identity: Identity) -> None:
        self._rotation.ensure(identity)

    def release(self, identity: Identity) -> None:
        self._rotation.release(identity)

    async def until_ready(self, identity: Identity) -> None:
        """Return as soon as the store has a certificate of this identity."""
        changed = asyncio.Event()
        stop = self._store.listen(lambda _: changed.set())
        try:
            while self._store.svid(identity) is None:
                await changed.wait()
                changed.clear()
        finally:
            stop()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """What ``sds status`` and metrics show of the node socket.

    Attributes:
        connections: open ones.
        accepted: since the start.
        refused: reason to count, since the start.
        pods: in the kubelet's last list, or None without the kubernetes attestor.
        csi_volumes: volumes with a socket, or None without the CSI driver.
        kubelet_error: why there is no newer list, or the empty string.
        services_error: why Services are not followed, or the empty string.
    """

    connections: int
    accepted: int
    refused: Mapping[str, int]
    pods: int | None
    csi_volumes: int | None
    kubelet_error: str
    services_error: str

    @property
    def notices(self) -> tuple[str, ...]:
        """What an operator should know, in words."""
        found = []
        if self.kubelet_error:
            found.append(f"new pods are not recognised: {self.kubelet_error}")
        if self.services_error:
            found.append(f"Services are not followed: {self.services_error}")
        return tuple(found)


class NodeSocket:
    """The node-wide socket; :meth:`open` opens it.

    Args:
        settings: of the socket.
        rules: which callers may have which identities.
        listener: bound and listening; closed at the end.
        rotation: keeps certificates of the identities that callers have.
        store: where they are.
        server: makes the server.
        clock: time.
        environment: where Kubernetes says its addresses.
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
    ) -> None:
        self._settings = settings
        self._rules = rules
        self._listener = listener
        self._keeper = StoreKeeper(rotation, store)
        self._store = store
        self._make_server = server
        self._clock = clock
        self._environment = os.environ if environment is None else environment
        self._door: FrontDoor | None = None
        self._csi: Driver | None = None
        self._recogniser: Recogniser | None = None
        self._roots: PodRoots | None = None
        self._pods: PodList | None = None
        self._services: ServiceWatch | None = None

    def replace_rules(self, rules: Rules) -> None:
        """The configuration or the policy changed: every caller is looked at again."""
        self._rules = rules
        if self._recogniser is not None:
            self._recogniser.replace_rules(rules)

    def status(self) -> NodeStatus:
        door = self._door
        return NodeStatus(
            connections=door.connections if door else 0,
            accepted=door.statistics.accepted if door else 0,
            refused=dict(door.statistics.refused) if door else {},
            pods=self._pods.size if self._pods else None,
            csi_volumes=self._csi.volumes if self._csi else None,
            kubelet_error=str((self._pods and self._pods.error) or ""),
            services_error=str((self._services and self._services.error) or ""),
        )

    @contextlib.asynccontextmanager
    async def open(self, *, grace_seconds: float) -> AsyncIterator[None]:
        """Serve while the block runs; then streams have ``grace_seconds`` to end.

        Raises:
            ConfigurationError: the settings do not fit this machine.
        """
        async with self._attestors() as attestors:
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
            server = await self._served()
            async with contextlib.AsyncExitStack() as stack:
                tasks = await stack.enter_async_context(asyncio.TaskGroup())
                running = tasks.create_task(door.run(server), name="front door")
                try:
                    if self._settings.csi is not None:
                        self._csi = await stack.enter_async_context(
                            csi_driver(self._settings.csi, door)
                        )
                    yield
                finally:
                    door.stop_accepting()
                    await server.stop(grace_seconds)
                    running.cancel()

    async def _served(self) -> Server:
        server = await self._make_server()
        api = WorkloadApi(self._store, entitlement_of)
        server.add_generic_rpc_handlers((api.handler(), WhoamiService().handler()))
        return server

    @contextlib.asynccontextmanager
    async def _attestors(self) -> AsyncIterator[Sequence[Attestor]]:
        async with contextlib.AsyncExitStack() as stack:
            found: list[Attestor] = []
            for name in self._settings.attestors:
                match name:
                    case AttestorName.SOCKET:
                        found.append(SocketAttestor(SOCKET_NAME))
                    case AttestorName.UNIX:
                        unix = UnixAttestor(Executables(self._clock, self._executable_limits()))
                        stack.push_async_callback(unix.aclose)
                        found.append(unix)
                    case AttestorName.KUBERNETES:
                        found.append(await stack.enter_async_context(self._kubernetes()))
            yield found

    def _executable_limits(self) -> ExecutableLimits:
        largest = self._settings.largest_executable
        return ExecutableLimits(largest=largest, burst=2 * largest)

    @contextlib.asynccontextmanager
    async def _kubernetes(self) -> AsyncIterator[Attestor]:
        # Measured: aiohttp takes 8 MB that a node without Kubernetes does not pay.
        from sds.workload.kubernetes.api import ApiClient  # noqa: PLC0415

        settings = self._settings.kubernetes
        roots = self._roots = pod_roots(
            self._environment,
            cgroup_root=settings.cgroup_root,
            runtime_cgroup=settings.runtime_cgroup,
        )
        kubelet = kubelet_server(settings.kubelet, self._environment)
        api = api_server(settings.api, self._environment) if settings.services else None
        async with contextlib.AsyncExitStack() as stack:
            self._pods = PodList(await stack.enter_async_context(ApiClient(kubelet)), self._clock)
            runs = {"kubelet's pods": self._pods.run}
            if api is not None:
                client = await stack.enter_async_context(ApiClient(api))
                self._services = ServiceWatch(client, self._clock)
                runs["services"] = self._services.run
            async with asyncio.TaskGroup() as tasks:
                running = [
                    tasks.create_task(supervised(name, run, clock=self._clock), name=name)
                    for name, run in runs.items()
                ]
                try:
                    yield KubernetesAttestor(self._pods, self._services, roots=roots)
                finally:
                    for task in running:
                        task.cancel()
