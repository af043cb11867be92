"""Thousands of identities ask at one moment: each costs the same, however many wait with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from sds.clock import SystemClock
from sds.errors import AuthorityUnavailableError
from sds.identity import Identity, SpiffeId, TrustDomain
from sds.secrets import issuance_queue
from sds.secrets.issuance_queue import IssuanceQueue, NoCredentials
from sds.secrets.schedule import Urgency

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import pytest

    from sds.authority.port import Issuance
    from sds.exchange.item import CertificateItem

TD = TrustDomain("example.org")
IDENTITIES = [Identity(spiffe_id=SpiffeId(TD, f"/{number}")) for number in range(100)]


class Gone:
    """An authority that cannot be reached."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        self.asked.append(len(items))
        raise AuthorityUnavailableError("nobody is there")


@contextlib.asynccontextmanager
async def queue(authority: Gone) -> AsyncIterator[IssuanceQueue]:
    asked = IssuanceQueue(authority, SystemClock(), on_roots=lambda *_: None, attempt_seconds=10)
    running = asyncio.create_task(asked.run())
    try:
        yield asked
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_who_was_answered_is_not_looked_for_among_those_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(issuance_queue, "MAX_ITEMS", 10)
    compared: Counter[str] = Counter()

    def equal(self: Identity, other: object) -> bool:
        compared["times"] += 1
        return self is other

    monkeypatch.setattr(Identity, "__eq__", equal)
    authority = Gone()
    async with queue(authority) as asked:
        answers = await asyncio.gather(
            *(asked.ask(one, Urgency.WAITING, window=0.0) for one in IDENTITIES)
        )
    assert all(isinstance(answer, NoCredentials) for answer in answers)
    assert authority.asked == [10] * 10
    assert not compared


async def test_who_waits_no_more_is_not_asked_for() -> None:
    authority = Gone()
    async with queue(authority) as asked:
        tasks = [
            asyncio.create_task(asked.ask(one, Urgency.EARLY, window=0.2)) for one in IDENTITIES
        ]
        await asyncio.sleep(0.05)
        for task in tasks[10:]:
            task.cancel()
        await asyncio.wait(tasks)
    assert authority.asked == [10]
