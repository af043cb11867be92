"""Answers ``/metrics`` with the registry, in the format that the scraper asks for.

Invariant: a scrape changes nothing; it runs on the event loop and takes milliseconds, since every
collector reads memory only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder

from sds.operations.http_listener import HttpAnswer, HttpRequest

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from sds.operations.http_listener import HttpHandler


_OPENMETRICS: Final = "application/openmetrics-text"


def handler(registry: CollectorRegistry) -> HttpHandler:
    """Make a handler: OpenMetrics if ``Accept`` asks for it, else Prometheus text."""

    def metrics(request: HttpRequest) -> HttpAnswer:
        # The library raises for versions that are not numbers, and repeats others in its answer.
        asked = _OPENMETRICS in request.headers.get("accept", "")
        encoder, content_type = choose_encoder(_OPENMETRICS if asked else "")
        return HttpAnswer(body=encoder(registry), content_type=content_type)

    return metrics
