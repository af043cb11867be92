"""The agent asks for roots on its stream: what repeats is not verified again, all else is."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest

from sds.authority.session import VERIFIED_SECONDS
from sds.clock import Instant, SystemClock
from sds.errors import EvidenceError
from tests.support.authority import World, items, renew, verifier_of, wish

if TYPE_CHECKING:
    from datetime import datetime

    from sds.attestation.evidence import Claims, Evidence, ReportData, Verifier
    from sds.ca.app import RunningAuthority


class Watched:
    """A verifier that counts, and refuses when it is told to."""

    def __init__(self, inner: Verifier) -> None:
        self.inner = inner
        self.calls = 0
        self.refuses = False

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        self.calls += 1
        if self.refuses:
            raise EvidenceError("revoked in the meantime", reason="measurement_not_allowed")
        return self.inner.verify(evidence, data=data, now=now)


class Later(SystemClock):
    """A clock that a test sets forward."""

    ahead = 0.0

    def now(self) -> Instant:
        now = super().now()
        return dataclasses.replace(now, boottime=now.boottime + self.ahead)


async def test_what_repeats_is_verified_once_in_a_while() -> None:
    world, clock = World(), Later()
    watched = Watched(verifier_of(world.authority))
    async with (
        world.running() as authority,
        world.client(authority.port, verifier=watched, clock=clock) as client,
    ):
        await client.issue(items([wish()]))
        told = {await client.roots() for _ in range(10)}
        assert len(told) == 1
        assert watched.calls == 1
        clock.ahead += VERIFIED_SECONDS + 1
        await client.roots()
        await client.roots()
        assert watched.calls == 2
        await client.issue(items([wish()]))  # its nonce is the one of the last Challenge


async def test_news_are_verified_before_they_count() -> None:
    world = World()
    watched = Watched(verifier_of(world.authority))
    async with (
        world.running() as authority,
        world.client(authority.port, verifier=watched) as client,
    ):
        await client.issue(items([wish()]))
        before = await client.roots()
        calls = watched.calls
        renew(authority)
        after = await client.roots()
        assert set(after) - set(before)
        assert watched.calls == calls + 1
        watched.refuses = True
        renew(authority)
        with pytest.raises(EvidenceError, match="revoked"):
            await client.roots()


async def test_an_authority_that_was_revoked_is_found_out_in_time() -> None:
    world, clock = World(), Later()
    watched = Watched(verifier_of(world.authority))
    async with (
        world.running() as authority,
        world.client(authority.port, verifier=watched, clock=clock) as client,
    ):
        await client.issue(items([wish()]))
        await client.roots()
        watched.refuses = True
        clock.ahead += VERIFIED_SECONDS + 1
        with pytest.raises(EvidenceError, match="revoked"):
            await client.roots()


async def until_open(authority: RunningAuthority, streams: int) -> None:
    async with asyncio.timeout(10):
        while authority.service.streams != streams:
            await asyncio.sleep(0.01)


async def test_an_agent_that_needs_no_certificate_keeps_no_stream() -> None:
    """The authority ends streams without evidence, and counts them among those of strangers."""
    world = World()
    async with world.running() as authority, world.client(authority.port) as client:
        await client.roots()
        await until_open(authority, 0)
        await client.issue(items([wish()]))
        await client.roots()
        await until_open(authority, 1)
