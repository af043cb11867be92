"""Registers the CSI driver with the kubelet's plugin watcher.

Owns the registration socket. Invariants: the kubelet sees the driver under one path at a time; an
agent that ends in order leaves no path behind; the path of an agent that crashed is used again,
because the kubelet may know the driver by it.

After a reboot, the kubelet may find a path where nothing answers. It tries that path again after a
wait that doubles up to two minutes, and a new socket at the path does not shorten the wait
(Kubernetes 1.34, ``pkg/util/goroutinemap/exponentialbackoff``). Meanwhile it mounts no volume. So
if the kubelet does not ask about a path soon, the agent replaces it by a new one, which the kubelet
tries at once. The two cannot exist side by side: the kubelet refuses the same version of a driver
twice (``pkg/volume/csi``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from typing import TYPE_CHECKING, Final

from sds.backoff import Backoff, Retry
from sds.errors import SdsError
from sds.faults import report
from sds.problems import Problems
from sds.transport.server import Server
from sds.unix_sockets import (
    OURS_ALONE,
    SocketFile,
    clear_socket,
    file_at,
    listening,
    remove_at_end,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.clock import Clock
    from sds.csi.service import RegistrationService

_LOGGER: Final = logging.getLogger(__name__)
_STOP_SECONDS: Final = 1.0
_RANDOM_BYTES: Final = 4
_AGAIN: Final = Backoff(first=0.5, longest=5.0)
PATIENCE_SECONDS: Final = 5.0
"""How long to wait for the kubelet, which looks once a second (``pkg/kubelet/pluginmanager``)."""


@contextlib.asynccontextmanager
async def registered(
    registration: RegistrationService,
    registry: Path,
    *,
    clock: Clock,
    patience: float = PATIENCE_SECONDS,
) -> AsyncIterator[None]:
    """Offer the driver to the kubelet while the block runs.

    Args:
        registration: answers the kubelet.
        registry: the kubelet's ``plugins_registry``.
        clock: waits between attempts to open a path.
        patience: the seconds after which a path is replaced if the kubelet does not ask about it.

    Raises:
        SocketError: the socket cannot be opened.
    """
    name = registration.name
    usual = registry / f"{name}-reg.sock"
    left = _left_behind(registry, name)
    for each in left:
        clear_socket(each)
    path = usual if usual in left or not left else left[0]
    offer = _Offer(registration, path, clock=clock)
    await offer.open()
    fresh = registry / f"{name}-{secrets.token_hex(_RANDOM_BYTES)}-reg.sock"
    waits = asyncio.create_task(offer.move_unless_asked(fresh, patience))
    try:
        yield
    finally:
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        await offer.end()


def _left_behind(registry: Path, name: str) -> list[Path]:
    """Return the paths that crashed agents left behind, but none of a driver with a longer name."""
    ours = re.compile(rf"{re.escape(name)}-(?:[0-9a-f]{{{2 * _RANDOM_BYTES}}}-)?reg\.sock")
    return sorted(path for path in registry.glob("*-reg.sock") if ours.fullmatch(path.name))


class _Offer:
    """The offer of the driver, at one path at a time."""

    def __init__(self, registration: RegistrationService, path: Path, *, clock: Clock) -> None:
        self._registration = registration
        self._clock = clock
        self._path = path
        self._file: SocketFile | None = None
        self._server = Server([registration.handler()])

    async def open(self) -> None:
        await self._server.listen(listening(self._path, OURS_ALONE))
        self._file = file_at(self._path)

    async def move_unless_asked(self, fresh: Path, patience: float) -> None:
        """Wait ``patience`` seconds for the kubelet, and then offer the driver at ``fresh``."""
        try:
            async with asyncio.timeout(patience):
                await self._registration.asked.wait()
        except TimeoutError:
            pass
        else:
            return
        _LOGGER.info(
            "the kubelet does not ask about the CSI driver: it may be waiting before it tries this "
            "path again, so the path changes",
            extra={"driver": self._registration.name, "path": str(fresh)},
        )
        try:
            self._path.unlink(missing_ok=True)  # if that fails, the kubelet still finds us there
            await self._server.stop(_STOP_SECONDS)
            self._path, self._server = fresh, Server([self._registration.handler()])
            await self._open_at_last()
        except Exception as error:  # noqa: BLE001  the boundary between this task and the agent
            report("task", error)

    async def _open_at_last(self) -> None:
        """Open, again and again if the directory does not permit it now (a full disk)."""
        retry, problems = Retry(self._clock, _AGAIN), Problems()
        while True:
            try:
                await self.open()
            except SdsError as error:
                if problems.is_news(error):
                    _LOGGER.warning(
                        "the kubelet cannot learn of the CSI driver: %s",
                        error,
                        extra={"reason": error.reason},
                    )
                await retry.pause()
            else:
                return

    async def end(self) -> None:
        remove_at_end(self._path, self._file)
        await self._server.stop(_STOP_SECONDS)
