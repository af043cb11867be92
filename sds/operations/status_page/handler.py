"""The page over HTTP.

Invariants: only a browser that names a loopback host is answered over TCP (a page of another site
that points its own name at 127.0.0.1 gets nothing); the answer forbids scripts, framing, caching
and loading of anything.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from sds.operations.status_page.render import page

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web
    from aiohttp.typedefs import Handler

    from sds.operations.state import AgentState

_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


def handler(look: Callable[[], AgentState]) -> Handler:
    """An aiohttp handler; ``look`` takes the photograph."""

    async def status(request: web.Request) -> web.Response:
        from aiohttp import web  # noqa: PLC0415  imported only where a listener runs

        host = request.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in _HOSTS:
            return web.Response(status=403, text="ask for localhost or 127.0.0.1\n")
        nonce = secrets.token_urlsafe(16)
        return web.Response(
            text=page(look(), nonce=nonce),
            content_type="text/html",
            headers={
                "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; "
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-store",
            },
        )

    return status
