"""Makes the node-wide socket: its file, its directory, and what is served on it.

Invariant: everybody on the node may connect (0666 in a 0755 directory); the front door decides who
they are and what they get.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.agent.directory import make_directory
from sds.agent.node_socket import NodeSocket
from sds.agent.sockets import WORKLOAD_SERVICES, workload_handlers
from sds.serving.server import add_health, add_reflection, make_server
from sds.unix_sockets import EVERYBODY, ISTIO_NAME, listening
from sds.workload.gate import Gate

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.agent.config import AgentConfig
    from sds.agent.node_settings import NodeSettings
    from sds.agent.socket_guard import SocketGuard
    from sds.clock import Clock
    from sds.secrets.rotation import Rotation
    from sds.secrets.store import SecretStore
    from sds.serving.service import SecretService
    from sds.serving.workload_api import WorkloadApi
    from sds.transport.budget import Budgets
    from sds.transport.server import Server
    from sds.workload.cri.settings import PodContents


def make_node_socket(
    config: AgentConfig,
    settings: NodeSettings,
    *,
    service: SecretService,
    api: WorkloadApi,
    rotation: Rotation,
    store: SecretStore,
    clock: Clock,
    budgets: Budgets,
    guard: SocketGuard,
    listed: Callable[[], tuple[PodContents, ...]],
) -> NodeSocket:
    """Bind the node-wide socket; opening it accepts connections.

    Raises:
        SocketError: it cannot be bound.
    """
    path = config.node_socket
    make_directory(config.run_dir, 0o711)  # others may pass through, but see no names
    make_directory(path.parent, 0o755)
    with guard.making(path) as place:
        listener = listening(place, EVERYBODY)
    guard.link(path.with_name(ISTIO_NAME), path.name)
    return NodeSocket(
        settings,
        config.rules,
        listener=listener,
        rotation=rotation,
        store=store,
        server=lambda: _server(service, api, budgets),
        clock=clock,
        directory=config.run_dir,
        listed=listed,
    )


async def _server(service: SecretService, api: WorkloadApi, budgets: Budgets) -> Server:
    handlers = workload_handlers(service, api)
    server = make_server(service.options.limits, handlers, budgets=budgets)
    server.gate = Gate(service.refused)
    # The door is open; whether a certificate exists yet differs from caller to caller.
    add_health(server).tell(serving=True)
    add_reflection(server, WORKLOAD_SERVICES)
    return server
