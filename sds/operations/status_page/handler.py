"""Answers HTTP requests for the page.

Invariants: over TCP, only a request that names a loopback host is answered, so that a site which
points its own name at 127.0.0.1 gets nothing; the answer forbids scripts, framing, caching and
loading of anything.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from sds.operations.http_listener import HttpAnswer, HttpRequest
from sds.operations.status_page.render import page

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.operations.http_listener import HttpHandler
    from sds.operations.state import AgentState

_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})

_LOADED: Final = "default-src 'none'"
_REST: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def handler(look: Callable[[], AgentState]) -> HttpHandler:
    """Make a handler; ``look`` reads the agent's state."""

    def status(request: HttpRequest) -> HttpAnswer:
        host = request.headers.get("host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in _HOSTS:
            return HttpAnswer(status=403, body=b"ask for localhost or 127.0.0.1\n")
        nonce = secrets.token_urlsafe(16)
        return HttpAnswer(
            body=page(look(), nonce=nonce).encode(),
            content_type="text/html; charset=utf-8",
            headers=(
                ("Content-Security-Policy", f"{_LOADED}; style-src 'nonce-{nonce}'; {_REST}"),
                ("X-Content-Type-Options", "nosniff"),
                ("Referrer-Policy", "no-referrer"),
                ("Cache-Control", "no-store"),
            ),
        )

    return status
