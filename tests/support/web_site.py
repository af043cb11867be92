"""HTTP servers of a test on a free port of the loopback interface."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def site(
    application: web.Application,
    *,
    tls: ssl.SSLContext | None = None,
    shutdown_seconds: float = 60.0,
) -> AsyncIterator[int]:
    """Serve the application while the block runs; its port."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=shutdown_seconds)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()
