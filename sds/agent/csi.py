"""Opens the CSI driver: its two sockets in the kubelet's directories.

Owns the order of starting: the sockets of pods are opened again first, and then the kubelet may ask
for new ones. Invariant: only our user may open the sockets that the kubelet calls (0600).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds import __version__
from sds.agent.csi_registration import registered
from sds.agent.directory import make_directory
from sds.csi.driver import Driver
from sds.csi.service import CsiServices, RegistrationService
from sds.supervision import supervised
from sds.transport.server import Server
from sds.unix_sockets import OURS_ALONE, listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from sds.agent.node_settings import CsiSettings
    from sds.clock import Clock
    from sds.csi.driver import PodDoor

_STOP_SECONDS: Final = 1.0


def node_name(environment: Mapping[str, str]) -> str:
    """Return this node's name: ``NODE_NAME`` from the downward API, else the host's name."""
    return environment.get("NODE_NAME") or socket.gethostname()


@contextlib.asynccontextmanager
async def csi_driver(
    settings: CsiSettings, door: PodDoor, *, clock: Clock
) -> AsyncIterator[Driver]:
    """Run the driver while the block runs.

    Raises:
        SocketError: a socket cannot be opened, or the kubelet's directory cannot be listed.
    """
    kubelet = Path(settings.kubelet_dir)
    plugin = kubelet / "plugins" / settings.driver
    make_directory(plugin, 0o750)
    driver = Driver(name=settings.driver, kubelet=kubelet, door=door)
    services = CsiServices(driver, node=node_name(os.environ), version=__version__)
    endpoint = plugin / "csi.sock"
    registration = RegistrationService(name=settings.driver, endpoint=str(endpoint))
    server = Server(services.handlers())
    try:
        await driver.restore()
        await server.listen(listening(endpoint, OURS_ALONE))
        rest = partial(driver.restore_rest, clock=clock)
        async with registered(registration, kubelet / "plugins_registry", clock=clock):
            again = asyncio.create_task(supervised("csi-volumes", rest, clock=clock))
            try:
                yield driver
            finally:
                again.cancel()
                await asyncio.gather(again, return_exceptions=True)
    finally:
        await server.stop(_STOP_SECONDS)
        driver.close()
