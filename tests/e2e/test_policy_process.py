"""Signed policy in real processes: files, signals, restarts, rollback, Kubernetes' symlinks."""

from __future__ import annotations

import asyncio
import json
import signal
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from tests.support.node import TRUST_DOMAIN, Node, short_folder
from tests.support.policies import Signatory, document, sign
from tests.support.policy_files import deploy
from tests.support.policy_site import S, Site
from tests.support.process import PATIENCE_SECONDS, output, running, sds
from tests.support.xds_client import Sotw, channel, fetch, secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.process import Process

pytestmark = pytest.mark.e2e


@pytest.fixture
def site() -> Iterator[Site]:
    with short_folder() as folder:
        yield Site(Node(folder))


NOBODY = ["urn:attested-sds:nobody"]


async def test_a_policy_file_in_all_its_turns(site: Site) -> None:
    """One life of an agent: a change, bad files, halves of a file, SIGHUP, the end of the last."""
    site.publish(site.signed(1, ("web", "api")), "ca", "agent")
    async with site.authority(), site.agent() as agent:
        assert await site.context("api") == [f"{S}/web"]
        assert await site.context("web") == NOBODY
        assert await site.context("web", f"outbound:{S}/api") == [f"{S}/api"]
        await a_change_is_pushed(site, agent)
        await bad_files_change_nothing(site, agent)
        await a_file_in_two_halves(site, agent)
        await the_last_good_one_ends(site, agent)


async def a_change_is_pushed(site: Site, agent: Process) -> None:
    async with channel(f"unix:{site.node.socket('web')}") as connection:
        stream = Sotw(connection)
        await stream.ask("inbound")
        assert secrets(await stream.next())
        site.publish(site.signed(2, ("api", "web")), "agent")
        pushed = secrets(await stream.next())["inbound"]
        (matcher,) = pushed.validation_context.match_typed_subject_alt_names
        assert matcher.matcher.exact == f"{S}/api"
    await agent.line("policy change: allow: .*/web may no longer talk to .*/api")
    await agent.line("policy change: allow: .*/api may now talk to .*/web")
    status, said, _ = await output(
        sds("status", "--run-dir", site.node.run_dir, "--output", "json")
    )
    assert status == 0
    seen = json.loads(said)
    assert seen["policy"]["epoch"] == 2
    assert not any("policy" in notice for notice in seen["notices"])


async def bad_files_change_nothing(site: Site, agent: Process) -> None:
    good = site.signed(3, ("web", "api"))
    site.publish(good, "agent")
    await site.until("api", [f"{S}/web"])
    for content, reason in (
        (good[: len(good) // 2], "policy_malformed"),
        (site.signed(2, ("api", "web")), "policy_epoch_lower"),
        (site.signed(3, ("api", "web")), "policy_epoch_conflict"),
        (sign(document(9), Signatory("mallory")), "policy_unsigned"),
    ):
        site.publish(content, "agent")
        await agent.line(f"reason={reason}")
        assert await site.context("api") == [f"{S}/web"]
    site.file("agent").unlink()
    await agent.line("cannot be read, what is in force stays")
    site.publish(site.signed(4), "agent")
    await site.until("api", NOBODY)


async def a_file_in_two_halves(site: Site, agent: Process) -> None:
    new = site.signed(5, ("web", "api"))
    said = len(agent.lines)
    with site.file("agent").open("wb") as file:
        file.write(new[:100])
        file.flush()
        await agent.line("reason=policy_malformed", after=said)
        assert await site.context("api") == NOBODY
        file.write(new[100:])
    agent.signal(signal.SIGHUP)
    await site.until("api", [f"{S}/web"])


async def the_last_good_one_ends(site: Site, agent: Process) -> None:
    said = len(agent.lines)
    ends = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
    site.publish(site.signed(6, ("web", "api"), not_after=ends), "agent")
    await agent.line("ready=false", after=said)
    assert await site.context("api") == NOBODY
    site.publish(site.signed(7, ("web", "api")), "agent")
    await site.until("api", [f"{S}/web"])
    await agent.line("ready=true", after=said)


async def test_kubernetes_swaps_the_data_symlink(site: Site) -> None:
    mounted = site.node.folder / "policy"
    mounted.mkdir()
    first = site.signed(1, ("web", "api"))
    deploy(mounted, 1, first)
    site.publish(first, "ca")
    section = {"directory": str(mounted), "keys": [site.signatory.public.pem]}
    async with site.authority(), site.agent(policy=section):
        deploy(mounted, 2, site.signed(2, ("api", "web")))
        await site.until("web", [f"{S}/api"])
        deploy(mounted, 3, site.signed(3))
        await site.until("web", NOBODY)


async def test_rolled_back_disks_are_healed_by_whoever_still_knows(site: Site) -> None:
    old, new = site.signed(1, ("web", "api")), site.signed(5, ("api", "web"))
    site.publish(new, "ca")
    site.publish(old, "agent")
    # The agent's disk was rolled back: the authority hands the newer policy down.
    async with site.authority(), site.agent() as agent:
        await agent.line("policy of epoch 5 is in force")
        assert await site.context("web") == [f"{S}/api"]
    # The authority's disk was rolled back: an agent hands the newer policy up.
    site.publish(old, "ca")
    site.publish(new, "agent")
    async with site.authority() as authority, site.agent():
        await authority.line("policy of epoch 5 is in force")


async def test_what_policy_does_not_give_a_socket_is_not_served(site: Site) -> None:
    rules = [{"name": "web", "match": {"socket:name": "web"}, "spiffe_id": f"{S}/web"}]
    site.publish(site.signed(1, workloads=rules), "ca", "agent")
    async with site.authority(), site.agent() as agent:
        await agent.line("does not give the socket api the identity")
        async with channel(f"unix:{site.node.socket('api')}") as connection:
            assert not secrets(await fetch(connection, "default"))
        async with channel(f"unix:{site.node.socket('web')}") as connection:
            assert secrets(await fetch(connection, "default"))
        site.publish(site.signed(2), "agent")
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with channel(f"unix:{site.node.socket('api')}") as connection:
                while not secrets(await fetch(connection, "default")):
                    await asyncio.sleep(0.05)


async def test_configurations_that_cannot_be(site: Site) -> None:
    site.publish(site.signed(1), "agent")
    for change, said in (
        ({"keys": []}, "policy.keys"),
        ({"file": str(site.file("missing"))}, "cannot be read: No such file"),
    ):
        section = {**site.section("agent"), **change}
        async with site.agent(ready=False, policy=section) as agent:
            assert await agent.wait() == 2
            assert said in agent.text


async def test_admission_reads_its_policy_again_at_a_hangup(site: Site) -> None:
    """Nothing starts on the node while it is down, so a reload must not end it."""
    folder = site.node.folder / "admission"
    config = folder / "admission.yaml"
    folder.mkdir()
    settings = {
        "trust_domain": TRUST_DOMAIN,
        "policy": {"directory": str(folder / "policy"), "keys": [str(site.key)]},
        "run_dir": str(folder / "run"),
        "runtime": {"socket": str(folder / "containerd.sock")},
        "containerd_config": None,
        "kubelet_config": None,
        "wrapper": str(folder / "wrapper"),
    }
    config.write_text(json.dumps(settings))
    (folder / "policy").mkdir()
    (folder / "policy" / "1.json").write_bytes(site.signed(1, ("web", "api")))
    status, script, said = await output(sds("admission", "wrapper", "--config", config))
    assert status == 0, said
    (folder / "wrapper").write_text(script + "\n")
    (folder / "wrapper").chmod(0o755)
    async with running(sds("admission", "serve", "--config", config), name="admission") as it:
        await it.line("READY")
        it.signal(signal.SIGHUP)
        (folder / "policy" / "2.json").write_bytes(site.signed(2, ("web", "api")))
        await it.line("policy of epoch 2 is in force")
