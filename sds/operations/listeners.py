"""Opens the listeners that an operator switched on, while the block runs.

Invariant: a listener that is not configured is not opened, and its library is not imported.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from sds.federation.serve import bundle_documents
from sds.operations.http_listener import HttpAnswer, HttpRequest, listening
from sds.operations.metrics.exposition import handler as metrics_handler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.federation.settings import ServeSettings
    from sds.identity import TrustDomain
    from sds.operations.instruments import Instruments
    from sds.operations.settings import MetricsSection, StatusPageSection
    from sds.operations.state import AgentState
    from sds.secrets.store import SecretStore
    from sds.settings.listen import ListenAddress

_LOGGER = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def metrics_listener(
    section: MetricsSection | None, instruments: Instruments
) -> AsyncIterator[ListenAddress | None]:
    """Open the listener of ``/metrics``, if it is configured, and yield its address.

    Raises:
        SocketError: the address cannot be bound.
    """
    if section is None:
        yield None
        return
    routes = {"/metrics": metrics_handler(instruments.registry)}
    async with listening(section.address(), routes, field="metrics.listen") as bound:
        _LOGGER.info("metrics", extra={"listen": str(bound)})
        yield bound


@contextlib.asynccontextmanager
async def status_page_listener(
    section: StatusPageSection | None, look: Callable[[], AgentState]
) -> AsyncIterator[ListenAddress | None]:
    """Open the status page's listener, if it is configured, and yield its address.

    Raises:
        SocketError: the address cannot be bound.
    """
    if section is None:
        yield None
        return
    # Measured: Jinja2 and the compiled page take 3 MB, which an agent without the page saves.
    from sds.operations.status_page.handler import handler  # noqa: PLC0415

    async with listening(
        section.address(), {"/": handler(look)}, field="status_page.listen"
    ) as bound:
        _LOGGER.info("status page", extra={"listen": str(bound)})
        yield bound


@contextlib.asynccontextmanager
async def bundle_listener(
    section: ServeSettings | None, store: SecretStore, trust_domain: TrustDomain
) -> AsyncIterator[ListenAddress | None]:
    """Open the listener of our bundle document, if it is configured, and yield its address.

    Raises:
        SocketError: the address cannot be bound.
    """
    if section is None:
        yield None
        return

    made = bundle_documents(store, trust_domain, refresh_hint=section.refresh_hint)

    def bundle(_request: HttpRequest) -> HttpAnswer:
        found = made()
        if found is None:
            return HttpAnswer(status=503, body=b"no bundle yet\n")
        return HttpAnswer(body=found, content_type="application/json")

    address = section.address()
    async with listening(address, {"/bundle": bundle}, field="federation.serve.listen") as bound:
        _LOGGER.info("bundle endpoint", extra={"listen": str(bound)})
        yield bound
