"""The commands of docs/kubernetes.md, as a person types them: from nothing to ``restricted``.

The page's blocks run one after the other in one shell, in a copy of ``deploy/``. What the test adds
is only what this cluster lacks: its own images, and addresses where it has no DNS. It needs
``kustomize``; ``SDS_NODE_SHELL`` where a forwarded port is on the node (see test_adversary.py).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from tests.support import need
from tests.support.cluster import (
    ADDRESSES,
    ENVOY,
    IMAGE,
    KUBECTL,
    NO_DNS,
    SYSTEM,
    attempt,
    check_unused,
    delete,
    hosts,
    image,
    kubectl,
    patch,
    state,
    without_dns,
)
from tests.support.process import output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(900)
MARK = "<!-- run by tests/kubernetes/test_docs.py -->"
PAGE = (need.ROOT / "docs" / "kubernetes.md").read_text()


def blocks() -> list[str]:
    """What the page says to type, in its order."""
    found: list[str] = re.findall(
        rf"^{MARK}\n```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL
    )
    return [block.replace("registry.example/attested-sds:1", IMAGE) for block in found]


def program(folder: Path, name: str, *command: str) -> None:
    """A command of this name for the page's shell."""
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    path.chmod(0o755)


def fitted(deploy: Path) -> None:
    """What this cluster lacks goes into the copy, before anything of the page runs."""
    patches = []
    if NO_DNS:
        patches = [
            patch("Deployment", "billing", hosts(orders="orders.shop.svc")),
            patch("Service", "orders", ("/spec/clusterIP", ADDRESSES["orders"])),
        ]
    for name, more in (
        ("overlays/plain", {"patches": without_dns()}),
        ("sample", {"images": [image("envoyproxy/envoy", ENVOY)], "patches": patches}),
    ):
        path = deploy / name / "kustomization.yaml"
        given = yaml.safe_load(path.read_text())
        for key, values in more.items():
            given[key] = [*given.get(key, []), *values]
        path.write_text(yaml.safe_dump(given, sort_keys=False))


@pytest.fixture
async def checkout(tmp_path: Path) -> AsyncIterator[Path]:
    await check_unused(SYSTEM, "shop")
    shutil.copytree(need.ROOT / "deploy", tmp_path / "deploy")
    fitted(tmp_path / "deploy")
    try:
        yield tmp_path
    finally:
        for sample in ("sample-csi", "overlays/plain"):
            await delete(tmp_path / "deploy" / sample)
        await attempt("delete", "namespace", SYSTEM, "--ignore-not-found", "--wait=true")


async def test_the_pages_commands_lead_to_a_sample_under_restricted(checkout: Path) -> None:
    kustomize = need.tool("kustomize")
    programs = checkout / "programs"
    programs.mkdir()
    program(programs, "kubectl", *KUBECTL)
    if node := shlex.split(os.environ.get("SDS_NODE_SHELL", "")):
        program(programs, "curl", *node, need.tool("curl"))
    leave = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"
    script = "\n".join(["set -em -o pipefail", leave, *blocks()])
    path = f"{programs}:{os.path.dirname(kustomize)}:{os.environ['PATH']}"  # noqa: PTH120
    status, out, error = await output(
        ["bash", "-c", script], cwd=checkout, env={"PATH": path}, seconds=700
    )
    assert status == 0, f"{out}\n{error}\n{await state()}"
    # Once by hostPath, once by CSI.
    assert out.count("x-peer: spiffe://example.org/ns/shop/sa/billing") == 2
    assert "spiffe://example.org/ns/shop/sa/orders" in out  # sds status
    labels = json.loads(await kubectl("get", "namespace", "shop", "-o", "json"))["metadata"]
    assert labels["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    pods = json.loads(await kubectl("get", "pods", "-n", "shop", "-o", "json"))["items"]
    for pod in pods:
        volumes = pod["spec"]["volumes"]
        assert not any("hostPath" in volume for volume in volumes) or pod["metadata"].get(
            "deletionTimestamp"
        )
