"""Wall clocks that are wrong: the authority's, and those of the two Envoys, both ways.

What may not fail and where that ends: an Envoy may be ahead by less than what is left of a
certificate when the next one comes (half of its life), and behind by less than the authority's
backdating (30 s).
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest

from tests.support.mesh import CLIENT, SERVER, running_mesh
from tests.support.node import Node, short_folder
from tests.support.process import PATIENCE_SECONDS
from tests.support.wall_clock import SteppedClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.envoy import Envoy
    from tests.support.mesh import Mesh

pytestmark = pytest.mark.e2e

LIFETIME = 10
STEP = 3
"""Less than half of the lifetime."""


@pytest.fixture
def node() -> Iterator[Node]:
    with short_folder() as folder:
        yield Node(folder, workloads=(CLIENT, SERVER), lifetime=f"{LIFETIME}s")


async def ahead(envoy: Envoy) -> float:
    """Seconds by which an Envoy's clock is ahead of ours, as it tells itself (whole seconds)."""
    async with envoy.http.get(f"http://{envoy.admin}/ready") as response:
        told = parsedate_to_datetime(response.headers["date"])
    return (told - datetime.now(UTC)).total_seconds()


async def until_ahead(envoy: Envoy, seconds: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not seconds - 2 <= await ahead(envoy) <= seconds + 1:
            await asyncio.sleep(0.05)


async def until_failing(mesh: Mesh) -> None:
    before = len(mesh.failures)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(mesh.failures) < before + 5:
            await asyncio.sleep(0.05)


async def until_whole(mesh: Mesh) -> None:
    """Wait until twenty requests in a row went through."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            failures, requests = len(mesh.failures), mesh.requests
            while mesh.requests < requests + 20 and len(mesh.failures) == failures:
                await asyncio.sleep(0.05)
            if len(mesh.failures) == failures:
                return


async def test_the_authoritys_clock_is_stepped_both_ways(node: Node, tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    async with (
        node.authority(env=clock.env) as authority,
        node.agent() as agent,
        running_mesh(node, tmp_path) as mesh,
    ):
        for step in (STEP, 0, -STEP, 0):
            seen = len(authority.lines)
            clock.step(step)
            issued = await authority.line(r"^(\S+Z) .*certificate issued", after=seen)
            told = datetime.fromisoformat(issued[1]) - datetime.now(UTC)
            assert step - 1 < told.total_seconds() < step + 1
            await mesh.rotations(2)
            mesh.undisturbed()
        assert "no certificate for" not in agent.text
        await mesh.no_resumption()


@pytest.mark.parametrize("name", [CLIENT, SERVER])
async def test_an_envoys_clock_is_stepped_both_ways(node: Node, tmp_path: Path, name: str) -> None:
    clock = SteppedClock(tmp_path)
    async with (
        node.authority(),
        node.agent(),
        running_mesh(node, tmp_path, env={name: clock.env}) as mesh,
    ):
        envoy = mesh.client if name == CLIENT else mesh.server
        for step in (STEP, 0, -STEP, 0):
            clock.step(step)
            await until_ahead(envoy, step)
            await mesh.rotations(2)
            mesh.undisturbed()
        await mesh.no_resumption()
        # Where that ends: every certificate is over, or not valid yet, and rightly refused.
        for step in (LIFETIME + 5, -40):
            clock.step(step)
            await until_failing(mesh)
            clock.step(0)
            await until_whole(mesh)
