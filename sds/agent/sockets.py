"""The agent's gRPC servers: one for each workload's socket, and one for the admin socket.

A process that can open a workload's socket *is* that workload, so each has a server of its own with
a fixed :class:`Entitlement` (docs/adr/0401). Invariants: a workload's socket shows nothing of
another workload; a socket is bound before anything waits for certificates, so that an Envoy that
starts with us does not back off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.agent.directory import make_directory
from sds.agent.grpc_fallback import CalledBy, listen_by_grpc, make_grpc_server
from sds.serving.calls import ADS_SERVICE, ECDS_SERVICE, SDS_SERVICE
from sds.serving.client_status import CSDS_SERVICE, ClientStatus
from sds.serving.health import HEALTH_SERVICE
from sds.serving.server import AnyServer, add_health, add_reflection, make_server
from sds.serving.workload_api import SERVICE as WORKLOAD_API_SERVICE
from sds.unix_sockets import OURS_ALONE, SocketFile, listening, remove_at_end
from sds.workload import whoami
from sds.workload.connection_caller import OwnSocket, entitlement_of
from sds.workload.entitlement import Caller, Entitlement, Selector

if TYPE_CHECKING:
    from pathlib import Path

    import grpc

    from sds.agent.config import AgentConfig
    from sds.agent.owners import Owners
    from sds.agent.socket_guard import SocketGuard
    from sds.agent.workload_settings import WorkloadSection
    from sds.identity import Identity
    from sds.serving.health import SocketHealth
    from sds.serving.service import SecretService
    from sds.serving.workload_api import WorkloadApi
    from sds.transport.server import Server

WORKLOAD_SERVICES: Final = (
    SDS_SERVICE,
    ECDS_SERVICE,
    ADS_SERVICE,
    CSDS_SERVICE,
    HEALTH_SERVICE,
    WORKLOAD_API_SERVICE,
    whoami.SERVICE,
)
"""What workloads are served, for reflection."""
_ADMIN_SERVICES: Final = (CSDS_SERVICE, HEALTH_SERVICE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """One socket with its server.

    Attributes:
        path: the socket's path.
        file: what that path led to when it was bound.
        server: the server, started.
        health: its health.
    """

    path: Path
    file: SocketFile | None
    server: AnyServer
    health: SocketHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadListening:
    """A workload's socket.

    Attributes:
        workload: its configuration.
        entitlement: what a process that opens it may have.
        listening: its server.
    """

    workload: WorkloadSection
    entitlement: Entitlement
    listening: Listening

    @property
    def path(self) -> str:
        """Return where the socket is."""
        return str(self.listening.path)


def workload_handlers(
    service: SecretService, api: WorkloadApi
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Make the handlers of :data:`WORKLOAD_SERVICES`, for any socket of workloads.

    Health and reflection are the server's own.
    """
    status = ClientStatus(service, entitlement_of)
    mine = whoami.WhoamiService().handler()
    return (*service.handlers(entitlement_of), *status.handlers(), api.handler(), mine)


async def listen_for(
    workload: WorkloadSection,
    config: AgentConfig,
    service: SecretService,
    api: WorkloadApi,
    owners: Owners,
    *,
    guard: SocketGuard,
    identities: tuple[Identity, ...],
) -> WorkloadListening:
    """Open a workload's socket, in :attr:`AgentConfig.workloads_directory`, which exists.

    Args:
        workload: the workload.
        config: the agent's configuration.
        service: serves Envoys.
        api: serves other programs.
        owners: names the owners of connections, and has their budgets.
        guard: makes the socket, and watches it.
        identities: what a process that opens it may have at first.

    Raises:
        SocketError: it cannot be opened.
    """
    path = config.workload_socket(workload.name)
    make_directory(
        path.parent,
        config.sockets.directory_mode,
        group=config.sockets.group,
        trusted=config.workloads_directory,
    )
    entitlement = Entitlement(
        Caller(
            name=workload.name,
            selectors=frozenset({Selector("socket:name", workload.name)}),
            identities=identities,
        )
    )

    caller = OwnSocket(entitlement)

    def prepare(server: Server) -> None:
        server.add_generic_rpc_handlers(workload_handlers(service, api))
        add_reflection(server, WORKLOAD_SERVICES)

    server: AnyServer
    mode, group = config.sockets.socket_mode, config.sockets.group
    if config.transport == "grpc":
        server = make_grpc_server(service.options.limits)
        server.add_generic_rpc_handlers((CalledBy(workload_handlers(service, api), caller),))
        add_reflection(server, WORKLOAD_SERVICES)
        health = add_health(server)
        with guard.making(path) as place:
            await listen_by_grpc(server, place, mode, group=group)
    else:
        server = make_server(service.options.limits, (), budgets=owners.budgets)
        server.before_first_call(prepare)
        health = add_health(server)
        with guard.making(path) as place:
            listener = listening(place, mode, group=group)
        await server.listen(listener, caller=caller, owner_of=owners.name)
    return WorkloadListening(
        workload=workload,
        entitlement=entitlement,
        listening=Listening(path=path, file=guard.file(path), server=server, health=health),
    )


async def listen_for_people(
    path: Path,
    service: SecretService,
    more: tuple[tuple[str, grpc.GenericRpcHandler], ...],
    *,
    guard: SocketGuard,
) -> Listening:
    """Open the admin socket, which has budgets of its own and shares nothing with callers.

    Args:
        path: the socket's path.
        service: the service whose clients CSDS shows.
        more: further services, by full name.
        guard: makes the socket, and watches it.

    Raises:
        SocketError: it cannot be opened.
    """
    status = ClientStatus(service)
    server = make_server(
        service.options.limits, (*status.handlers(), *(handler for _, handler in more))
    )
    add_reflection(server, (*_ADMIN_SERVICES, *(name for name, _ in more)))
    health = add_health(server)
    with guard.making(path) as place:
        listener = listening(place, OURS_ALONE)
    await server.listen(listener)
    return Listening(path=path, file=guard.file(path), server=server, health=health)


async def close(listening: Listening, *, grace_seconds: float) -> None:
    """Stop serving; open calls have this long to end."""
    try:
        await listening.server.stop(grace_seconds)
    finally:  # a second signal ends the wait
        remove_at_end(listening.path, listening.file)
