"""A client of another authority is one module and one line of the registry, and nothing else."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sds.agent import build
from sds.agent.check import check_configuration
from sds.agent.config import AgentConfig
from sds.authority import registry
from sds.clock import SystemClock
from sds.errors import ConfigurationError
from sds.exchange.item import CertificateItem, IssuedChain
from sds.identity import Identity, KeyType, SpiffeId
from sds.operations.instruments import AgentInstruments
from sds.pki import generate_private_key, make_csr
from sds.settings.yamlfile import load_file
from tests.support import toy_authority

if TYPE_CHECKING:
    from pathlib import Path

SECTION = {"kind": "toy", "addresses": ["127.0.0.1:1"], "settings": {"word": "hello"}}


@pytest.fixture
def _line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line."""
    monkeypatch.setitem(registry.AUTHORITIES, toy_authority.NAME, "tests.support.toy_authority")


def config(folder: Path, **changes: Any) -> AgentConfig:
    path = folder / "agent.yaml"
    written = {
        "trust_domain": "example.org",
        "run_dir": str(folder / "run"),
        "authority": SECTION | changes,
    }
    path.write_text(yaml.safe_dump(written))
    return load_file(path, AgentConfig)


@pytest.mark.usefixtures("_line")
async def test_a_toy_authority_is_added_through_the_registry_alone(tmp_path: Path) -> None:
    given = config(tmp_path)
    clock = SystemClock()
    client = build.authority_client(
        given,
        clock=clock,
        instruments=AgentInstruments(clock=clock),
        policy=None,
        verified_by=build.verification(given, clock=clock),
    )
    assert isinstance(client, toy_authority.ToyAuthority)
    assert client.word == "hello"
    key = generate_private_key(KeyType.EC_P256)
    identity = Identity(spiffe_id=SpiffeId.parse("spiffe://example.org/web"))
    item = CertificateItem(identity=identity, csr=make_csr(key, identity))
    answer = await client.issue([item])
    (outcome,) = answer.outcomes
    assert isinstance(outcome, IssuedChain)
    assert answer.roots == (client.root.der,)
    settings = build.rotation_settings(given)
    assert settings.attempt > 2 * timedelta(seconds=10)  # a turn and a call, after the files
    assert settings.lifetime_elsewhere == timedelta(hours=3)


@pytest.mark.usefixtures("_line")
def test_its_own_check_is_part_of_check_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"authority\.settings\.word"):
        check_configuration(
            config(tmp_path, settings={}), what="it", environment={}, clock=SystemClock()
        )


def test_without_the_line_it_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="expected sds, istio"):
        config(tmp_path)
