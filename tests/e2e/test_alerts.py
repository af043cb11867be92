"""Alerts through real outages: a real Prometheus scrapes a real authority and agent once a second.

Each alert must fire within a few scrapes of what it is about, stay while the cause lasts, and go
with it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.machines import crl
from tests.support.node import Node, chips, free_port, short_folder
from tests.support.policy_site import Site
from tests.support.prometheus import prometheus
from tests.support.xds_client import Sotw, channel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture
def node() -> Iterator[Node]:
    with short_folder() as folder:
        yield Node(folder, workloads=("web",), lifetime="10s")


def metrics(port: int) -> dict[str, Any]:
    return {"metrics": {"listen": f"127.0.0.1:{port}"}}


async def test_an_authority_that_is_gone_is_told_until_it_is_back(
    node: Node, tmp_path: Path
) -> None:
    agent, ca = free_port(), free_port()
    async with prometheus(tmp_path, agent, ca) as watch, contextlib.AsyncExitStack() as stack:
        authority = contextlib.AsyncExitStack()
        await authority.enter_async_context(node.authority(**metrics(ca)))
        await stack.enter_async_context(node.agent(**metrics(agent)))
        gone = {"SdsAuthorityGone", "SdsRenewalLate", "SdsSvidExpiring"}
        await watch.scraped(2)
        await watch.until(silent={*gone, "SdsNotReady", "SdsDown"})
        await authority.aclose()
        await watch.until(firing={"SdsAuthorityGone", "SdsDown"})
        # Past the end of the SVID: nothing resolves because its series is gone.
        expired = {*gone, "SdsNotReady", "SdsIdentityUnserved", "SdsRenewalsFail"}
        await watch.until(firing=expired)
        await watch.stays(*expired)
        await stack.enter_async_context(node.authority(**metrics(ca)))
        await watch.until(silent={*expired, "SdsDown"})


async def test_an_agent_that_ended_is_told(node: Node, tmp_path: Path) -> None:
    agent = free_port()
    async with prometheus(tmp_path, agent) as watch, node.authority():
        async with node.agent(**metrics(agent)) as process:
            await watch.scraped(1)
            await process.kill()
        await watch.until(firing={"SdsDown"})
        await watch.stays("SdsDown")
        async with node.agent(**metrics(agent)):
            await watch.until(silent={"SdsDown"})


async def test_policy_that_is_refused_rolled_back_or_expired(node: Node, tmp_path: Path) -> None:
    agent = free_port()
    site = Site(node)
    site.publish(site.signed(2, ("web", "web")), "ca", "agent")
    async with (
        prometheus(tmp_path, agent) as watch,
        site.authority(),
        site.agent(**metrics(agent)),
    ):
        await watch.scraped(1)
        await watch.until(silent={"SdsPolicyRefused", "SdsNoPolicy"})
        site.publish(site.signed(1, ("web", "web")), "agent")
        await watch.until(firing={"SdsPolicyRefused"})
        await watch.stays("SdsPolicyRefused")
        end = datetime.now(UTC) + timedelta(seconds=6)
        site.publish(site.signed(3, ("web", "web"), not_after=end.isoformat()), "ca", "agent")
        await watch.until(firing={"SdsPolicyExpires"}, silent={"SdsPolicyRefused"})
        await watch.until(firing={"SdsNoPolicy", "SdsPolicyExpires"})
        await watch.stays("SdsNoPolicy", "SdsPolicyExpires")
        site.publish(site.signed(4, ("web", "web")), "ca", "agent")
        await watch.until(silent={"SdsNoPolicy"})


async def test_a_revocation_list_that_is_gone(node: Node, tmp_path: Path) -> None:
    ca, agent = free_port(), free_port()
    lists = node.folder / "amd.crl"
    lists.write_bytes(crl(chips(), now=datetime.now(UTC)))
    judged = {"trusted_roots": [str(node.ark)], "revocation_lists": [str(lists)]}
    async with (
        prometheus(tmp_path, ca, agent) as watch,
        node.authority(verification=judged, **metrics(ca)),
    ):
        await watch.scraped(1)
        await watch.until(silent={"SdsCollateralRefused"})
        kept = lists.rename(lists.with_name("kept"))
        await watch.until(firing={"SdsCollateralRefused"})
        await watch.stays("SdsCollateralRefused")
        kept.rename(lists)
        await watch.until(silent={"SdsCollateralRefused"})


async def test_the_first_evidence_that_is_refused(node: Node, tmp_path: Path) -> None:
    ca = free_port()
    wrong = [{"measurement": "ab" * 48, "spiffe_ids": ["spiffe://example.org/**"]}]
    async with (
        prometheus(tmp_path, ca) as watch,
        node.authority(
            verification={
                "trusted_roots": [str(node.ark)],
                "reference_values": {"measurements": ["ab" * 48]},
            },
            identities=wrong,
            **metrics(ca),
        ),
    ):
        await watch.scraped(1)
        await watch.until(silent={"SdsEvidenceRefused"})
        async with node.agent(ready=False) as agent:
            await agent.line("measurement")
            await watch.until(firing={"SdsEvidenceRefused"})


async def test_a_client_that_refuses_a_secret(node: Node, tmp_path: Path) -> None:
    agent = free_port()
    node.lifetime = "1h"
    async with (
        prometheus(tmp_path, agent) as watch,
        node.authority(),
        node.agent(**metrics(agent)),
    ):
        async with channel(f"unix:{node.socket('web')}") as connection:
            stream = Sotw(connection)
            await stream.ask("default")
            response = await stream.next()
            await stream.nack(response, "default", error="the private key does not match")
            await watch.until(firing={"SdsNack"})
            await watch.stays("SdsNack")
        await watch.until(silent={"SdsNack"})


async def test_a_socket_that_somebody_replaced(node: Node, tmp_path: Path) -> None:
    agent = free_port()
    node.lifetime = "1h"
    async with (
        prometheus(tmp_path, agent) as watch,
        node.authority(),
        node.agent(**metrics(agent)) as process,
    ):
        path = node.socket("web")
        kept = path.with_name("kept")
        path.rename(kept)
        with socket.socket(socket.AF_UNIX) as theirs:
            theirs.bind(str(path))
            await process.line("somebody removed or replaced the socket")
            await watch.until(firing={"SdsSocketLost", "SdsNotReady"})
            # It is remembered for a minute; tests/unit/test_readiness.py sees it forgotten.
            await watch.stays("SdsSocketLost")


async def test_a_shortage_of_descriptors(node: Node, tmp_path: Path) -> None:
    agent = free_port()
    node.lifetime = "1h"
    async with (
        prometheus(tmp_path, agent) as watch,
        node.authority(),
        node.agent(**metrics(agent)) as process,
    ):
        await watch.until(silent={"SdsFewDescriptors"})
        before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{process.pid}/fd"))  # noqa: PTH208  names are enough
        # Connections leave room by themselves; here the machine leaves none.
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used + 3, before[1]))
        await watch.until(firing={"SdsFewDescriptors"})
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
        await watch.until(silent={"SdsFewDescriptors"})
