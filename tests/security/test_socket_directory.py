"""Somebody who can write to the directory of a socket, as a container of root can that mounts it.

Not prevented: replacing the socket for a moment. Whatever the moment, the agent notices it, says
it, and puts its socket back.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.node import Node, lasting_authority, short_folder
from tests.support.process import PATIENCE_SECONDS, output, running, sds

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

US = str(os.geteuid())
RULES = [{"name": "us", "match": {"unix:uid": US}, "spiffe_id": "spiffe://example.org/us"}]
# It puts a socket of its own in the place of the first that appears, however short it is there.
IMPOSTOR = """
import os, socket, sys
path = sys.argv[1]
other = path + ".other"
with socket.socket(socket.AF_UNIX) as ours:
    ours.bind(other)
    ours.listen()
    print("waits", flush=True)
    while not os.path.lexists(path):
        pass
    os.rename(other, path)
    print("replaced", flush=True)
    while True:
        ours.accept()[0].close()
"""


@pytest.fixture
def node() -> Iterator[Node]:
    with lasting_authority() as port, short_folder() as folder:
        yield Node(folder, port=port)


def place(node: Node, *, transport: str) -> Path:
    if transport == "grpc":
        return node.socket("web")
    return node.run_dir / "node" / "sds.sock"


@pytest.mark.parametrize("transport", ["own", "grpc"])
async def test_a_socket_that_is_exchanged_while_the_agent_starts_is_put_back_and_reported(
    node: Node, transport: str
) -> None:
    path = place(node, transport=transport)
    path.parent.mkdir(parents=True)
    changes: dict[str, Any] = {"transport": "grpc"}
    if transport == "own":
        changes = {"node": {"attestors": ["unix"]}, "workloads": RULES}
    async with running([sys.executable, "-c", IMPOSTOR, path]) as impostor:
        await impostor.line("waits")
        async with node.agent(ready=False, **changes) as agent:
            await impostor.line("replaced")
            await agent.line(f"somebody removed or replaced the socket {path}: it is put back")
            _, said, _ = await output(sds("status", "--run-dir", node.run_dir, "--output", "json"))
            assert not json.loads(said)["ready"]
            async with asyncio.timeout(PATIENCE_SECONDS):
                whoami = sds("whoami", "--socket", path)
                while (await output(whoami))[0] != 0:
                    await asyncio.sleep(0.1)


async def test_the_link_that_sidecars_of_istio_follow_is_put_back_and_reported(node: Node) -> None:
    """Who exchanges the link leads them elsewhere, and the socket itself stays as it was."""
    path = place(node, transport="own")
    link = path.with_name("socket")
    async with node.agent(node={"attestors": ["unix"]}, workloads=RULES) as agent:
        assert str(link.readlink()) == "sds.sock"
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(link) + ".other")
            link.with_name("socket.other").rename(link)
            await agent.line(f"somebody removed or replaced the socket {link}: it is put back")
        assert (await output(sds("whoami", "--socket", link)))[0] == 0
    async with node.agent(node={"attestors": ["unix"]}, workloads=RULES) as agent:
        assert "removed or replaced" not in agent.text
