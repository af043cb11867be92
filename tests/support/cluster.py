"""A real cluster of tests: ``kubectl``, kustomizations for it, and waiting for what it says.

The environment names the cluster (tests/kubernetes); nothing here is used without one.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.process import output

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

IMAGE = os.environ.get("SDS_IMAGE", "")
ENVOY = os.environ.get("SDS_ENVOY_IMAGE", "docker.io/envoyproxy/envoy:v1.37-latest")
KUBECTL = shlex.split(os.environ.get("SDS_KUBECTL", "kubectl"))
NO_DNS = os.environ.get("SDS_CLUSTER_DNS") == "none"
PATIENCE = 180.0
ADDRESSES = {"issuer": "10.96.0.51", "root": "10.96.0.52", "orders": "10.96.0.53"}
SYSTEM = "attested-sds"
AGENT = "ds/attested-sds-agent"


async def attempt(*arguments: str, seconds: float = PATIENCE) -> tuple[int, str, str]:
    """``kubectl`` with these arguments: status, stdout, stderr."""
    return await output([*KUBECTL, *arguments], seconds=seconds)


async def kubectl(*arguments: str, seconds: float = PATIENCE) -> str:
    """What ``kubectl`` prints; it must succeed."""
    status, out, err = await attempt(*arguments, seconds=seconds)
    assert status == 0, f"kubectl {' '.join(arguments)}: {err or out}"
    return out


async def until(
    what: Callable[[], Awaitable[Any]], holds: Callable[[Any], object], seconds: float = PATIENCE
) -> tuple[Any, float]:
    """What was found when it held, and how long that took."""
    began = time.monotonic()
    found: Any = None
    while time.monotonic() - began < seconds:
        found = await what()
        if holds(found):
            return found, time.monotonic() - began
        await asyncio.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {found}\n{await state()}")


async def state() -> str:
    """What a person would look at."""
    parts = [
        ["get", "pods", "-A", "-o", "wide"],
        ["logs", "-n", SYSTEM, AGENT, "--tail=30"],
        ["logs", "-n", SYSTEM, "deploy/attested-sds-issuer", "--tail=20"],
        ["logs", "-n", SYSTEM, "sts/attested-sds-root", "--tail=20"],
        ["logs", "-n", "shop", "deploy/billing", "-c", "envoy", "--tail=20"],
    ]
    return "\n".join([(await attempt(*part))[1][-6000:] for part in parts])


async def rolled_out(namespace: str, *what: str) -> None:
    """Wait until the new pods of each are ready."""
    for each in what:
        arguments = ["rollout", "status", "-n", namespace, each, "--timeout=150s"]
        status, _, _ = await attempt(*arguments)
        assert status == 0, f"{each} is not rolled out\n{await state()}"


def patch(kind: str, name: str, *operations: tuple[str, Any]) -> dict[str, Any]:
    """A patch of a kustomization that adds values at paths."""
    body = [{"op": "add", "path": path, "value": value} for path, value in operations]
    return {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump(body)}


def merged(kind: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
    """A strategic merge patch of a kustomization."""
    head = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}}
    return {"target": {"kind": kind, "name": name}, "patch": yaml.safe_dump({**head, **body})}


def hosts(**names: str) -> tuple[str, Any]:
    """Names of Services for pods of a cluster without DNS."""
    aliases = [{"ip": ADDRESSES[name], "hostnames": [host]} for name, host in names.items()]
    return "/spec/template/spec/hostAliases", aliases


def without_dns() -> list[dict[str, Any]]:
    """Patches by which agent and authorities find each other where the cluster has no DNS."""
    if not NO_DNS:
        return []
    return [
        patch(
            "DaemonSet",
            "attested-sds-agent",
            hosts(issuer="attested-sds-issuer.attested-sds.svc"),
        ),
        patch(
            "Deployment", "attested-sds-issuer", hosts(root="attested-sds-root.attested-sds.svc")
        ),
        patch("Service", "attested-sds-issuer", ("/spec/clusterIP", ADDRESSES["issuer"])),
        patch("Service", "attested-sds-root", ("/spec/clusterIP", ADDRESSES["root"])),
    ]


def image(name: str, full: str) -> dict[str, str]:
    """An entry of a kustomization's ``images``."""
    new, _, tag = full.rpartition(":")
    return {"name": name, "newName": new, "newTag": tag}


def kustomization(folder: Path, **content: Any) -> Path:
    """A kustomization in this folder."""
    folder.mkdir(exist_ok=True)
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({**head, **content}))
    return folder


async def check_unused(*namespaces: str) -> None:
    """Stop before anything is applied, and then deleted, over an installation that is there."""
    _, context, _ = await attempt("config", "current-context")
    print(f"this test installs into the cluster {context!r}, and removes it all at its end")
    for namespace in namespaces:
        found = await kubectl("get", "namespace", namespace, "--ignore-not-found", "-o", "name")
        if found.strip():
            pytest.fail(
                f"the cluster {context!r} has a namespace {namespace} already, which this test "
                "would replace and delete: use an empty cluster, or delete the namespace yourself"
            )


async def delete(*kustomizations: Path) -> None:
    """Remove what was applied, and wait until it is gone."""
    for each in kustomizations:
        await attempt("delete", "-k", str(each), "--ignore-not-found", "--wait=true", seconds=300)
