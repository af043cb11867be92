"""A configuration of one's own, written for real machines, on a laptop: `sds simulate`."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.node import NODE, Node, short_folder
from tests.support.policy_site import Site
from tests.support.process import output, running, sds

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e


@pytest.fixture
def node() -> Iterator[Node]:
    with short_folder() as folder:
        yield Node(folder, workloads=("web",))


def simulate(node: Node, measurement: str, *command: Any) -> list[Any]:
    where = ["--machines", node.folder / "machines", "--measurement", measurement]
    return [*sds("simulate"), *where, "--", "sds", *command]


async def test_policy_node_socket_and_rules_of_ones_own(node: Node) -> None:
    site = Site(node)
    uid = os.getuid()
    rules = [
        {"name": "web", "match": {"socket:name": "web"}, "spiffe_id": "spiffe://example.org/web"},
        {"name": "me", "match": {"unix:uid": str(uid)}, "spiffe_id": "spiffe://example.org/me"},
    ]
    both = {"measurements": [NODE.hex()]}
    signed = site.signed(
        1, ("me", "web"), workloads=rules, reference_values={"agents": both, "authorities": both}
    )
    site.publish(signed, "ca", "agent")
    # As it is written for a machine with SEV-SNP.
    real = {"attestation": {"kind": "sev-snp"}, "verification": {}}
    ca = node.file("ca", node.authority_settings(identities=[], policy=site.section("ca"), **real))
    agent = node.file(
        "agent",
        node.agent_settings(
            policy=site.section("agent"), node={"attestors": ["socket", "unix"]}, **real
        ),
    )
    before = agent.read_bytes()
    async with (
        running(simulate(node, NODE.hex(), "ca", "--config", ca), name="ca") as authority,
        running(simulate(node, NODE.hex(), "agent", "--config", agent), name="agent") as process,
    ):
        await authority.line("READY")
        await process.line("SIMULATED MACHINE")
        await process.line("in place of kind sev-snp")
        await process.line("ready=true")
        status, said, _ = await output(
            sds("whoami", "--socket", node.run_dir / "node" / "sds.sock")
        )
        assert status == 0
        assert "spiffe://example.org/me" in said
        _, said, _ = await output(sds("status", "--run-dir", node.run_dir))
        assert "SIMULATED" in said
    assert agent.read_bytes() == before
    folder = node.folder / "machines"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("demo",), "sds simulate runs `sds agent` or `sds ca`"),
        (("agent",), "the command has no --config FILE"),
        (("agent", "--config", "/none.yaml"), "/none.yaml cannot be read"),
    ],
)
async def test_what_it_cannot_run(node: Node, command: tuple[str, ...], said: str) -> None:
    status, _, errors = await output(simulate(node, NODE.hex(), *command))
    assert status == 2
    assert said in errors


async def test_a_measurement_of_another_length(node: Node) -> None:
    status, _, errors = await output(simulate(node, "ab", "agent", "--config", "x"))
    assert status == 2
    assert "a launch measurement has 48" in errors


def test_nothing_is_imported_from_the_current_directory(node: Node, tmp_path: Path) -> None:
    """It may belong to another user, and the program that follows runs with our rights."""
    (tmp_path / "sds").mkdir()
    (tmp_path / "sds" / "__init__.py").write_text("raise SystemExit('imported from here')\n")
    ca = node.file("ca", node.authority_settings(attestation={"kind": "sev-snp"}))
    program = Path(sys.executable).parent / "sds"
    ran = subprocess.run(
        [program, *simulate(node, NODE.hex(), "ca", "--config", ca, "--check-config")[3:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "imported from here" not in ran.stderr
    assert ran.returncode == 0, ran.stderr
    assert "can be used" in ran.stdout
