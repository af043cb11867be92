"""The listeners that an operator switched on, open while the block runs.

Invariant: what is not configured is not opened, and its library is not imported.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from sds.operations.http import listening
from sds.settings.listen import ListenAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.federation.settings import ServeSettings
    from sds.identity import TrustDomain
    from sds.operations.http import MetricsSection, StatusPageSection
    from sds.operations.instruments import Instruments
    from sds.operations.state import AgentState
    from sds.secrets.store import SecretStore

_LOGGER = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def metrics_listener(
    section: MetricsSection | None, instruments: Instruments
) -> AsyncIterator[ListenAddress | None]:
    """``/metrics``, where it is configured; yields where it is.

    Raises:
        SocketError: the address cannot be bound.
    """
    if section is None:
        yield None
        return
    from sds.operations.metrics.exposition import handler  # noqa: PLC0415  only where it is switched on

    routes = {"/metrics": handler(instruments.registry)}
    async with listening(section.address(), routes) as bound:
        _LOGGER.info("metrics", extra={"listen": str(bound)})
        yield bound


@contextlib.asynccontextmanager
async def status_page_listener(
    section: StatusPageSection | None, look: Callable[[], AgentState]
) -> AsyncIterator[ListenAddress | None]:
    """The status page, where it is configured; yields where it is.

    Raises:
        SocketError: the address cannot be bound.
    """
    if section is None:
        yield None
        return
    from sds.operations.status_page.handler import handler  # noqa: PLC0415  only where it is switched on

    async with listening(section.address(), {"/": handler(look)}) as bound:
        _LOGGER.info("status page", extra={"listen": str(bound)})
        yield bound


@contextlib.asynccontextmanager
async def bundle_listener(
    section: ServeSettings | None, store: SecretStore, trust_domain: TrustDomain
) -> AsyncIterator[ListenAddress | None]:
    """Our bundle document, where it is configured; yields where it is.

    Raises:
        SocketError: the address cannot be bound.
    """
    if section is None:
        yield None
        return
    from sds.federation.serve import bundle_handler  # noqa: PLC0415  as above

    handler = bundle_handler(store, trust_domain, refresh_hint=section.refresh_hint)
    address = ListenAddress.parse(section.listen, field="federation.serve.listen")
    async with listening(address, {"/bundle": handler}) as bound:
        _LOGGER.info("bundle endpoint", extra={"listen": str(bound)})
        yield bound
