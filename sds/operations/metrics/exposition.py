"""``/metrics``: the registry in the format that the scraper asks for.

Invariant: read-only; a scrape runs on the event loop and takes milliseconds, since every
collector reads memory only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.typedefs import Handler
    from prometheus_client import CollectorRegistry


def handler(registry: CollectorRegistry) -> Handler:
    """An aiohttp handler: OpenMetrics where ``Accept`` asks for it, else Prometheus text."""

    async def metrics(request: web.Request) -> web.Response:
        from aiohttp import web  # noqa: PLC0415  imported only where a listener runs

        encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encoder(registry), headers={"Content-Type": content_type})

    return metrics
