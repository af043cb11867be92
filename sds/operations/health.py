"""A small HTTP listener for probes: is the process alive, and ready.

Owns the section ``health:`` of agent and authority. Invariant: it says "alive", "ready" or "not
ready" and nothing else, so it may listen beyond loopback: a kubelet's HTTP probe comes from the
node, and its gRPC probe would need the service itself on TCP.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from pydantic import Field

from sds.operations.http import listening
from sds.settings.fields import Settings
from sds.settings.listen import ListenAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from aiohttp import web


class HealthSettings(Settings):
    """The section ``health:``."""

    listen: str = Field(
        description="`0.0.0.0:8081`, `127.0.0.1:8081` or `unix:/path`: GET /livez and /readyz."
    )


@contextlib.asynccontextmanager
async def health_listener(
    settings: HealthSettings | None, ready: Callable[[], bool]
) -> AsyncIterator[None]:
    """Answer probes while the block runs; nothing where there are no settings.

    Args:
        settings: where.
        ready: whether to say so.

    Raises:
        ConfigurationError: the address is none.
        SocketError: it cannot be bound.
    """
    if settings is None:
        yield
        return
    from aiohttp import web  # noqa: PLC0415  costs memory that a process without it does not pay

    async def livez(_request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_request: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ready\n")
        return web.Response(text="not ready\n", status=503)

    address = ListenAddress.parse(settings.listen, field="health.listen", remote=True)
    async with listening(address, {"/livez": livez, "/readyz": readyz}):
        yield
