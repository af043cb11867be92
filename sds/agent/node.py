"""The node-wide socket as the agent opens it: its file, its directory, and what is served on it.

Invariant: everybody on the node may connect (0666 in a 0755 directory); the gRPC server behind the
door can be reached by nobody else (0700).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

from sds.agent.directory import clear_socket, make_directory, open_to
from sds.errors import SocketError
from sds.node.socket import NodeSocket
from sds.xds.server import HEALTH_SERVICE, add_health, add_reflection, make_server, set_health
from sds.xds.service import ADS_SERVICE, SDS_SERVICE
from sds.xds.status import CSDS_SERVICE, ClientStatus

if TYPE_CHECKING:
    from pathlib import Path

    import grpc

    from sds.clock import Clock
    from sds.config import AgentConfig
    from sds.node.settings import NodeSettings
    from sds.secrets.rotation import Rotation
    from sds.secrets.store import SecretStore
    from sds.xds.service import Entitlements, SecretService

_SERVICES: Final = (SDS_SERVICE, ADS_SERVICE, CSDS_SERVICE, HEALTH_SERVICE)
_BACKLOG: Final = 4096
_EVERYBODY: Final = 0o666


def make_node_socket(
    config: AgentConfig,
    settings: NodeSettings,
    *,
    service: SecretService,
    rotation: Rotation,
    store: SecretStore,
    clock: Clock,
) -> NodeSocket:
    """Bind the node-wide socket; it accepts when it is opened.

    Raises:
        SocketError: it cannot be bound.
    """
    path = config.node_socket
    make_directory(config.run_dir, 0o711)  # others pass through, and see no names
    make_directory(path.parent, 0o755)
    make_directory(config.inner_socket.parent, 0o700)
    return NodeSocket(
        settings,
        config.rules,
        listener=_bound(path),
        inner=config.inner_socket,
        rotation=rotation,
        store=store,
        server=lambda entitlements: _server(service, entitlements),
        clock=clock,
    )


async def _server(service: SecretService, entitlements: Entitlements) -> grpc.aio.Server:
    status = ClientStatus(service, entitlements)
    server = make_server(
        service.options.limits, (*service.handlers(entitlements), *status.handlers())
    )
    # The door is open: whose certificate is there yet differs from caller to caller.
    await set_health(add_health(server), serving=True)
    add_reflection(server, _SERVICES)
    return server


def _bound(path: Path) -> socket.socket:
    clear_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        open_to(path, _EVERYBODY)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketError(
            f"the socket {path} cannot be opened: {error.strerror}",
            advice="is the directory writable?",
        ) from error
    return listener
