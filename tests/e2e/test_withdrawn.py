"""A measurement, or a TCB, that the signed policy withdraws while an agent runs, and readmits."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.node import AUTHORITY, NODE, Node, short_folder
from tests.support.policy_site import Site
from tests.support.process import PATIENCE_SECONDS, output, sds
from tests.support.xds_client import channel, fetch, secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

LIFETIME = 12
OTHER = "ee" * 48
RIGHT: dict[str, Any] = {"measurements": [NODE.hex()]}
WITHDRAWN: dict[str, dict[str, Any]] = {
    "measurement": {"measurements": [OTHER]},
    "tcb": RIGHT | {"snp": {"minimum_tcb": {"genoa": {"microcode": 255}}}},
}
REASON = {"measurement": "measurement", "tcb": "tcb_below_minimum"}


@pytest.fixture
def site() -> Iterator[Site]:
    with short_folder() as folder:
        yield Site(Node(folder, workloads=("web",), lifetime=f"{LIFETIME}s"))


def policy(site: Site, epoch: int, agents: dict[str, Any]) -> bytes:
    values = {"agents": agents, "authorities": {"measurements": [AUTHORITY.hex()]}}
    workloads = [
        {
            "name": "web",
            "match": {"socket:name": "web"},
            "spiffe_id": "spiffe://example.org/web",
            "lifetime": f"{LIFETIME}s",
        }
    ]
    return site.signed(epoch, reference_values=values, workloads=workloads)


async def status(node: Node) -> dict[str, Any]:
    """What ``sds status`` says of the one identity."""
    _, stdout, stderr = await output(sds("status", "--run-dir", node.run_dir, "--output", "json"))
    assert stdout, stderr
    seen: dict[str, Any] = json.loads(stdout)
    identity: dict[str, Any]
    (identity,) = seen["identities"]
    return identity


async def is_served(node: Node) -> bool:
    async with channel(f"unix:{node.socket('web')}") as connection:
        return "default" in secrets(await fetch(connection, "default"))


async def until_served(node: Node, *, served: bool) -> datetime:
    """When it first was so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await is_served(node) is not served:
            await asyncio.sleep(0.02)
    return datetime.now(UTC)


@pytest.mark.parametrize("what", ["measurement", "tcb"])
async def test_what_is_withdrawn_ends_at_the_next_renewal(site: Site, what: str) -> None:
    reason = REASON[what]
    site.publish(policy(site, 1, RIGHT), "ca", "agent")
    async with site.authority() as authority, site.agent() as agent:
        seen = len(agent.lines)
        site.publish(policy(site, 2, WITHDRAWN[what]), "ca")
        # The agent says what happened, at once where somebody must act.
        await agent.line(r"ERROR .*no certificate for .*/web: \S.* reason=" + reason, after=seen)
        await authority.line(f"reason={reason}")
        before = await status(site.node)
        assert before["condition"] == "valid"
        assert before["reason"] == reason
        # What is valid stays served until it ends.
        ends = datetime.fromisoformat(before["not_after"])
        gone = await until_served(site.node, served=False)
        assert timedelta(0) <= gone - ends < timedelta(seconds=2)
        after = await status(site.node)
        assert after["condition"] == "refused"
        assert after["reason"] == reason
        assert after["message"]
        _, table, _ = await output(sds("status", "--run-dir", site.node.run_dir))
        assert "refused" in table
        # Nobody restarts anything.
        readmitted = len(agent.lines)
        site.publish(policy(site, 3, RIGHT), "ca")
        await until_served(site.node, served=True)
        assert (await status(site.node))["condition"] == "valid"
        await agent.line(r"\bready=true", after=readmitted)
