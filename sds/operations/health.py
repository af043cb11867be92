"""Serves a small HTTP listener for probes, which ask whether the process is alive and ready.

Invariant: it answers "alive", "ready" or "not ready" and nothing else, so it may listen beyond
loopback. A kubelet's HTTP probe comes from the node, and its gRPC probe would need the secret
service itself on TCP.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sds.operations.http_listener import HttpAnswer, HttpRequest, listening

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.operations.settings import HealthSection


@contextlib.asynccontextmanager
async def health_listener(
    section: HealthSection | None, ready: Callable[[], bool]
) -> AsyncIterator[None]:
    """Answer probes while the block runs; do nothing without a section.

    Raises:
        SocketError: the address cannot be bound.
    """
    if section is None:
        yield
        return

    def livez(_request: HttpRequest) -> HttpAnswer:
        return HttpAnswer(body=b"alive\n")

    def readyz(_request: HttpRequest) -> HttpAnswer:
        if ready():
            return HttpAnswer(body=b"ready\n")
        return HttpAnswer(status=503, body=b"not ready\n")

    async with listening(
        section.address(), {"/livez": livez, "/readyz": readyz}, field="health.listen"
    ):
        yield
