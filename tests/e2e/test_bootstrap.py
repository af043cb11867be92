"""Every bootstrap that we print or show is accepted by every Envoy that we test."""

import functools
import itertools
from pathlib import Path

import pytest
from click.testing import CliRunner

from sds.bootstrap.plan import Protocol
from sds.cli import main
from sds.commands.bootstrap import EnvoyRole
from tests.support.envoy import VERSIONS, validate
from tests.support.need import ROOT
from tests.unit.test_bootstrap import PEERS

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_examples_are_accepted(version: str, tmp_path: Path) -> None:
    examples = sorted((ROOT / "envoy").glob("*.yaml"))
    assert {example.stem for example in examples} >= {"server", "client", "sidecar", "gateway"}
    for example in examples:
        await validate(example, folder=tmp_path, version=version)


@functools.cache
def printed() -> tuple[str, ...]:
    """What ``sds bootstrap`` prints for each role and protocol: the same for every Envoy."""
    found = []
    for role, protocol in itertools.product(EnvoyRole, Protocol):
        arguments = ["bootstrap", "--socket", "/run/a/sds.sock", "--role", role.value]
        arguments += ["--protocol", protocol.value, *PEERS[role]]
        if role is not EnvoyRole.SERVER:
            arguments.append("--full-handshakes")
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.stderr
        found.append(result.stdout)
    return tuple(found)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_sds_bootstrap_prints_is_accepted(version: str, tmp_path: Path) -> None:
    for bootstrap in printed():
        await validate(bootstrap, folder=tmp_path, version=version)
