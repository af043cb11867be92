"""Answers ``/metrics`` with the registry, in the format that the scraper asks for.

Invariants: a scrape changes nothing; it runs on the event loop and takes milliseconds, since every
collector reads memory only; while connections wait for a place, requests share one answer for
:data:`SHARED_SECONDS`, so that a flood of them costs no more than other answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.exposition import choose_encoder

from sds.clock import stopwatch
from sds.operations.http_listener import HttpAnswer, HttpRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry

    from sds.operations.http_listener import HttpHandler


_OPENMETRICS: Final = "application/openmetrics-text"
SHARED_SECONDS: Final = 1.0


def handler(registry: CollectorRegistry, now: Callable[[], float] = stopwatch) -> HttpHandler:
    """Make a handler: OpenMetrics if ``Accept`` asks for it, else Prometheus text.

    Args:
        registry: what is shown.
        now: gives monotonic seconds.
    """
    shared: dict[bool, tuple[float, HttpAnswer]] = {}

    def metrics(request: HttpRequest) -> HttpAnswer:
        # The library raises for versions that are not numbers, and repeats others in its answer.
        asked = _OPENMETRICS in request.headers.get("accept", "")
        made_at, answer = shared.get(asked, (float("-inf"), HttpAnswer(body=b"")))
        if request.crowded and now() - made_at < SHARED_SECONDS:
            return answer
        encoder, content_type = choose_encoder(_OPENMETRICS if asked else "")
        answer = HttpAnswer(body=encoder(registry), content_type=content_type)
        if request.crowded:
            shared[asked] = now(), answer
        else:
            shared.clear()
        return answer

    return metrics
