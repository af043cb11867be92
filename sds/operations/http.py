"""Small read-only HTTP listeners (metrics, status page, bundle), and their configuration.

Owns where such a listener may be bound and how it ends. Invariants: a Unix socket is 0600 and
replaces only a dead one; another address than loopback is taken only where the configuration says
``remote``; only GET and HEAD are answered. aiohttp is imported only when a listener is started: it
costs ten megabytes that an agent without listeners does not pay.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from sds.errors import ConfigurationError, SocketError
from sds.settings.fields import Settings
from sds.settings.listen import ListenAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from aiohttp import web
    from aiohttp.typedefs import Handler


class MetricsSection(Settings):
    """Prometheus metrics over HTTP."""

    listen: str = Field(
        description="`127.0.0.1:9464` or `unix:/path`; serves `/metrics`.",
        examples=["127.0.0.1:9464"],
    )
    remote: bool = Field(
        default=False,
        description="Allow an address that is not loopback: whoever reaches it sees every "
        "identity's name.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.address()
        return self

    def address(self) -> ListenAddress:
        """Where to listen."""
        return _parse(self.listen, remote=self.remote)


class StatusPageSection(Settings):
    """The status page for people."""

    listen: str = Field(
        description="`127.0.0.1:9465` or `unix:/path`; nothing else is possible.",
        examples=["127.0.0.1:9465"],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self.address()
        return self

    def address(self) -> ListenAddress:
        """Where to listen."""
        return _parse(self.listen, remote=False)


def _parse(text: str, *, remote: bool) -> ListenAddress:
    try:
        return ListenAddress.parse(text, field="listen", remote=remote)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


@contextlib.asynccontextmanager
async def listening(
    address: ListenAddress, routes: Mapping[str, Handler]
) -> AsyncIterator[ListenAddress]:
    """Serve GET of each path while the context is open; yields the address really bound.

    Raises:
        SocketError: the address cannot be bound.
    """
    from aiohttp import web  # noqa: PLC0415  see the module

    application = web.Application(client_max_size=1024)
    for path, handler in routes.items():
        application.router.add_get(path, handler)
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    try:
        bound = await _start(runner, address)
        try:
            yield bound
        finally:  # not after a failed start: the path is then somebody else's
            if bound.path is not None:
                bound.path.unlink(missing_ok=True)
    finally:
        await runner.cleanup()


async def _start(runner: web.AppRunner, address: ListenAddress) -> ListenAddress:
    from aiohttp import web  # noqa: PLC0415  see the module

    try:
        if address.path is None:
            await web.TCPSite(runner, address.host, address.port).start()
            return ListenAddress(host=address.host, port=int(runner.addresses[0][1]))
        _clear(address.path)
        before = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(address.path)).start()
        finally:
            os.umask(before)
    except OSError as error:
        where = str(address.path or f"{address.host}:{address.port}")
        raise SocketError(f"cannot listen on {where}: {error.strerror or error}") from error
    return address


def _clear(path: Path) -> None:
    """Remove a socket on which nobody listens any more.

    Raises:
        SocketError: somebody listens on it, or it is no socket.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SocketError(f"{path} exists and is no socket", advice="choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise SocketError(f"{path} is in use by a living process", advice="choose another path")
