"""The policy says what authorities must show, to those whose configuration demands nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from sds.agent import build
from sds.agent.config import AgentConfig
from sds.agent.policy import AgentPolicy
from sds.authority.attested import AttestedAuthority
from sds.ca.config import UpstreamSection
from sds.ca.signer_source import upstream_client
from sds.ca.tls import self_signed_tls
from sds.clock import SystemClock
from sds.exchange.item import IssuedChain
from sds.operations.instruments import AgentInstruments
from sds.policy.holder import PolicyHolder
from sds.policy.settings import PolicySettings
from sds.settings.yamlfile import validate
from tests.support.authority import AUTHORITY, TRUST_DOMAIN, World, items, wish
from tests.support.policies import Signatory, document, sign
from tests.support.refusals import refused

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from sds.policy.envelope import SignedPolicy

ALICE = Signatory("alice")


def epoch(number: int, **fields: Any) -> SignedPolicy:
    now = datetime.now(UTC)
    window = {
        "not_before": (now - timedelta(days=1)).isoformat(),
        "not_after": (now + timedelta(days=1)).isoformat(),
    }
    return sign(document(number, **window, **fields), ALICE)


def agent(
    authority: dict[str, Any], world: World, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[AttestedAuthority, PolicyHolder]:
    """What an agent makes of its configuration."""
    written = {
        "trust_domain": "example.org",
        "run_dir": str(folder / "run"),
        "authority": authority,
        "policy": policy_section(folder),
    }
    config = validate(written, AgentConfig, what="the configuration")
    assert config.policy is not None
    clock = SystemClock()
    policy = AgentPolicy(config.policy, config=config, clock=clock)
    monkeypatch.setattr(build, "make_attester", lambda _: world.agent)
    client = build.authority_client(
        config,
        clock=clock,
        instruments=AgentInstruments(clock=clock),
        policy=policy,
        verified_by=build.verification(config, clock=clock),
    )
    assert isinstance(client, AttestedAuthority)
    return client, policy.holder


def issuer(
    authority: dict[str, Any], world: World, folder: Path, _: pytest.MonkeyPatch
) -> tuple[AttestedAuthority, PolicyHolder]:
    """What an authority below another one makes of its configuration."""
    section = validate(
        {"kind": "upstream", "authority": authority}, UpstreamSection, what="the configuration"
    )
    clock = SystemClock()
    settings = validate(policy_section(folder), PolicySettings, what="the configuration")
    holder = PolicyHolder(settings.start(TRUST_DOMAIN), clock=clock)
    holder.take((folder / "policy.json").read_bytes(), origin="disk")
    return upstream_client(section, world.agent, None, holder, clock), holder


def policy_section(folder: Path) -> dict[str, Any]:
    (folder / "alice.pub").write_text(ALICE.public.pem)
    (folder / "policy.json").write_bytes(epoch(1))
    return {"file": str(folder / "policy.json"), "keys": [str(folder / "alice.pub")]}


@pytest.mark.parametrize("party", [agent, issuer])
async def test_a_policy_that_demands_evidence_demands_it_under_verified_tls_too(
    party: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    tls = self_signed_tls(server_names=["ca.test"])
    root = tmp_path / "root.pem"
    root.write_bytes(tls.certificate_pem)
    async with world.running(tls=tls, attester=None) as running:
        authority = {
            "addresses": [f"127.0.0.1:{running.port}"],
            "tls": {"root": str(root), "server_name": "ca.test"},
        }
        client, holder = party(authority, world, tmp_path, monkeypatch)
        try:
            issuance = await client.issue(items([wish()]))
            assert isinstance(issuance.outcomes[0], IssuedChain)
            demanding = epoch(2, reference_values={"authorities": {"measurements": [AUTHORITY]}})
            assert holder.take(demanding, origin="disk").taken
            with refused("authority_evidence", match="shows no evidence"):
                await client.issue(items([wish()]))
            assert holder.take(epoch(3), origin="disk").taken
            await client.issue(items([wish()]))
        finally:
            await client.aclose()
