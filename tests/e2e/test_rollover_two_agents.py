"""The authority's root changes under two agents whose Envoys talk to each other all the time.

A root must be known on the one node before the first leaf under it is served on the other.
"""

from __future__ import annotations

import contextlib
import re
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

from tests.support.mesh import running_mesh
from tests.support.node import NODE, TRUST_DOMAIN, Node, short_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.process import Process

pytestmark = pytest.mark.e2e

LIFETIME = 10
LIFETIME_OF_A_CRASH = 20
"""Seconds: an authority that is killed must be back, and its root known, in half of it."""


@pytest.fixture
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[Node, Node]]:
    """The client's node and the server's, with one authority (the first one's files)."""
    lifetime = f"{getattr(request, 'param', LIFETIME)}s"
    with short_folder() as one, short_folder() as two:
        client = Node(one, workloads=("client",), lifetime=lifetime)
        yield client, Node(two, workloads=("server",), lifetime=lifetime, port=client.port)


async def moment(agent: Process, words: str, *, after: int) -> datetime:
    """When the agent first said so."""
    found = await agent.line(rf"^(\S+Z) .*{words}", after=after)
    return datetime.fromisoformat(found[1])


@pytest.mark.parametrize("nodes", [LIFETIME_OF_A_CRASH], indirect=True)
async def test_another_root_after_a_crash(nodes: tuple[Node, Node], tmp_path: Path) -> None:
    one, two = nodes
    async with contextlib.AsyncExitStack() as authority:
        first = await authority.enter_async_context(one.authority())
        async with (
            one.agent() as here,
            two.agent() as there,
            running_mesh(one, tmp_path, server_node=two) as mesh,
        ):
            await mesh.rotations(1)
            await first.kill()
            agents = {agent: len(agent.lines) for agent in (here, there)}
            async with one.authority():
                known = [await moment(a, "new root", after=n) for a, n in agents.items()]
                used = [await moment(a, "has certificate", after=n) for a, n in agents.items()]
                assert max(known) < min(used)
                await mesh.rotations(2)
                for agent, lines in agents.items():
                    await agent.line("left the bundle", after=lines)
                await mesh.rotations(1)
                mesh.undisturbed(here, there)
                await mesh.no_resumption()


async def test_the_next_root_of_an_authority_that_goes_on(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    """The self-signed root is renewed at half of its life."""
    one, two = nodes
    rule = {
        "measurement": NODE.hex(),
        "spiffe_ids": [f"spiffe://{TRUST_DOMAIN}/**"],
        "max_lifetime": f"{LIFETIME}s",
    }
    signer = {"kind": "self-signed", "lifetime": f"{4 * LIFETIME}s"}
    async with (
        one.authority(identities=[rule], signer=signer) as authority,
        one.agent() as here,
        two.agent() as there,
        running_mesh(one, tmp_path, server_node=two) as mesh,
    ):
        await mesh.rotations(1)
        first = re.findall(r"new root (\S+)", here.text)
        agents = {agent: len(agent.lines) for agent in (here, there)}
        said = len(authority.lines)
        known = [await moment(a, "new root", after=n) for a, n in agents.items()]
        signs = await moment(authority, "signs with a new certificate", after=said)
        assert max(known) < signs
        for agent, lines in agents.items():
            await agent.line(f"root {first[0]} left the bundle", after=lines)
        await mesh.rotations(1)
        mesh.undisturbed(here, there)
        await mesh.no_resumption()
