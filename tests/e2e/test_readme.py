"""The README's commands, executed as written, on free ports."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import grpcurl, need
from tests.support.envoy import NEWEST
from tests.support.process import output, running
from tests.support.readme import blocks, on_free_ports

pytestmark = pytest.mark.e2e

README = need.ROOT / "README.md"
RUN_DIR = need.ROOT / ".run" / "dev"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of somebody who has Envoy, curl and grpcurl on the PATH."""
    if RUN_DIR.exists():
        pytest.skip(f"{RUN_DIR} is in use")
    need.tool("curl")
    assert (need.ROOT / ".venv" / "bin" / "sds").exists(), "run `make setup`"
    (tmp_path / "envoy").symlink_to(need.envoy(NEWEST))
    (tmp_path / "grpcurl").symlink_to(grpcurl.binary())
    yield {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    shutil.rmtree(RUN_DIR, ignore_errors=True)


def script(block: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", block]


async def test_an_envoy_of_your_own_in_five_minutes(reader: dict[str, str]) -> None:
    commands = blocks(README, "With your own Envoy, in five minutes")
    dev, bootstraps, envoys = on_free_ports(commands)
    look, by_grpcurl = blocks(README, "Look inside")
    async with running(script(dev), env=reader, name="sds dev") as process:
        await process.line("Ctrl-C ends it")
        status, _, errors = await output(script(bootstraps), env=reader)
        assert status == 0, errors
        async with running(script(f"{envoys}\nwait"), env=reader, name="envoys") as pair:
            answer = json.loads((await pair.line(r"^\{.*\}$")).group())
            assert answer["peer"] == "spiffe://demo.test/client"
            status, said, errors = await output(script(look), env=reader)
            assert status == 0, errors
            assert "spiffe://demo.test/server" in said
            assert "PRIVATE KEY" not in said
            status, said, errors = await output(script(by_grpcurl), env=reader)
            assert status == 0, errors
            assert "envoy.service.status.v3.ClientStatusDiscoveryService" in said
            assert "ROOTCA" in said
            assert "PRIVATE KEY" not in said
        for line in printed_commands(process.text):
            status, said, errors = await output(script(line), env=reader)
            assert status == 0, (line, errors)
        assert await process.terminate() == 0
    assert not (RUN_DIR / "workloads" / "server" / "sds.sock").exists()


def printed_commands(text: str) -> list[str]:
    """The commands that ``sds dev`` printed and that end by themselves."""
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if re.match(r"(\S*sds (get|status)|grpcurl) ", line)]
    assert len(found) == 4, text
    return found
