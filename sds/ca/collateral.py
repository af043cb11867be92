"""The listener that gives a fleet its public collateral, in the layout of its publishers.

Owns the listener of the section ``collateral:``. Invariant: it serves only public data, whose
signatures the receiver verifies, so it needs neither TLS nor evidence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from sds.attestation.collateral.fetching import asker
from sds.attestation.collateral.publishing import PublishedCollateral
from sds.errors import ConfigurationError
from sds.operations.http_listener import HttpAnswer, HttpHandler, HttpRequest, listening
from sds.operations.listener_places import Patience
from sds.supervision import supervised
from sds.transport.addresses import owner_of_ip
from sds.transport.budget_sizes import Share

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Iterator

    from sds.attestation.build import Verification
    from sds.ca.config import CollateralSection
    from sds.clock import Clock
    from sds.settings.listen import ListenAddress

_SHARE: Final = Share(processor=0.25, processor_burst_seconds=1.0)
"""The share of time; a fleet that starts at once needs these answers before certificates."""
_PATIENCE: Final = Patience(answers=16, grace=0.5)
"""How many answers a connection may get; an agent asks for six to ten files."""


class _Everything(Mapping[str, HttpHandler]):
    """One handler for every path, of which it may know some."""

    def __init__(self, published: PublishedCollateral) -> None:
        self._published = published

    def __getitem__(self, path: str) -> HttpHandler:
        return self._answer

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def _answer(self, request: HttpRequest) -> HttpAnswer:
        owner = owner_of_ip(request.peer)
        found = self._published.answer(request.path, request.query, owner=owner)
        return HttpAnswer(
            status=found.status,
            body=found.body,
            headers=found.headers,
            content_type="application/octet-stream",
        )


def published_collateral(
    section: CollateralSection, verification: Verification, clock: Clock
) -> PublishedCollateral:
    """Make what is served: the files in force, and VCEKs that are fetched once.

    Raises:
        ConfigurationError: this authority does not fetch collateral.
    """
    fetch, folder = verification.section.fetch, verification.section.collateral
    if fetch is None or folder is None:
        raise ConfigurationError(
            "collateral: this authority fetches none, so it has none to serve",
            advice="set verification.collateral and verification.fetch",
        )
    return PublishedCollateral(
        lambda: verification.files.current,
        asker(fetch.kds.rstrip("/"), clock),
        folder / "vcek",
        clock=clock,
        roots=verification.roots,
        certificates=verification.certificates,
        spacing=section.spacing,
    )


@contextlib.asynccontextmanager
async def collateral_listener(
    section: CollateralSection,
    verification: Verification,
    tasks: asyncio.TaskGroup,
    *,
    clock: Clock,
) -> AsyncIterator[ListenAddress]:
    """Serve collateral while the block runs, and yield the address.

    Raises:
        SocketError: the address cannot be bound.
    """
    published = published_collateral(section, verification, clock)
    running = tasks.create_task(supervised("vceks", published.run, clock=clock), name="vceks")
    try:
        async with listening(
            section.address(),
            _Everything(published),
            field="collateral.listen",
            clock=clock,
            share=_SHARE,
            patience=_PATIENCE,
        ) as bound:
            yield bound
    finally:
        running.cancel()
