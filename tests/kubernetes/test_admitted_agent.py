"""The agent of a measured configuration under ``sds admission``: no object of etcd changes it.

It applies deploy/overlays/snp with the components cri, measured-configuration and admitted-agent,
and puts the agent's pod under ``always``.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from sds.workload.cri.settings import PodContents
from tests.support.cluster import (
    AGENT,
    SYSTEM,
    attempt,
    check_unused,
    delete,
    kubectl,
    rolled_out,
    until,
)
from tests.support.guarded_node import NODE, on_node
from tests.support.guest_cluster import MEASURED, SOCKET, GuestCluster, container, pod

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.guarded_node import GuardedNode

pytestmark = pytest.mark.timeout(900)

NAME = "spiffe://example.org/ns/shop/sa/orders"
# `kubectl exec` is refused, so the pod says by itself who it is.
ASKS = f"""
until sds whoami --socket {SOCKET} --output json > /dev/shm/said && grep -q {NAME} /dev/shm/said
do sleep 1; done
cat /dev/shm/said
exec sleep 86400
"""
EVIL = "/run/attested-sds-evil"
Template = dict[str, Any]


def _config(template: Template) -> dict[str, Any]:
    found: dict[str, Any] = next(
        each for each in template["spec"]["volumes"] if each["name"] == "config"
    )
    return found


def _config_map(template: Template) -> None:
    volume = _config(template)
    del volume["hostPath"]
    volume["configMap"] = {"name": "evil"}


EDITS: dict[str, Callable[[Template], object]] = {
    "other arguments": lambda it: it["spec"]["containers"][0]["args"].append("--log-level=debug"),
    "another directory": lambda it: _config(it)["hostPath"].update(path=EVIL),
    "a ConfigMap again": _config_map,
}


async def agents() -> list[str]:
    """Names of the agent's pods that are not on their way out."""
    words = ["-l", "app.kubernetes.io/name=attested-sds-agent", "-o", "json"]
    found = json.loads(await kubectl("get", "pod", "-n", SYSTEM, *words))["items"]
    names = [each["metadata"] for each in found]
    return [each["name"] for each in names if "deletionTimestamp" not in each]


async def replace(template: Template) -> list[str]:
    """Edit the DaemonSet, and wait for the pod of the edited one: its name."""
    there = set(await agents())
    change = [{"op": "replace", "path": "/spec/template", "value": template}]
    await kubectl("patch", "-n", SYSTEM, AGENT, "--type=json", "-p", json.dumps(change))
    found, _ = await until(agents, lambda now: now and not there & set(now))
    return list(found)


async def served(node: GuardedNode, asks: dict[str, Any]) -> None:
    """The listed workload starts, and the agent gives it its name."""
    await node.start(asks)
    await node.ready("asks")
    await until(lambda: kubectl("logs", "-n", "shop", "asks"), lambda said: NAME in said)
    await node.delete("asks")


async def test_the_agent_starts_as_it_was_measured_and_not_as_somebody_edits_it(
    node: GuardedNode, tmp_path: Path
) -> None:
    await check_unused(SYSTEM)
    guest = GuestCluster(tmp_path, node.signer, components=("cri", "admitted-agent"))
    guest.prepare()
    guest.settings["agent"]["node"]["attestors"] = ["cri"]
    asks = pod("asks", "shop", "orders", container(command=["sh", "-c", ASKS]))
    await kubectl("create", "namespace", SYSTEM)
    await kubectl("create", "serviceaccount", "-n", "shop", "orders")
    try:
        # On the bare node: what the workload consists of, and what the agent does.
        await guest.put_document(guest.document(1))
        await guest.measure(NODE)
        await guest.apply()
        await node.start(asks)
        await node.ready("asks")
        entry, sandbox_image = await node.observed("shop", "asks")
        await node.delete("asks")
        (before,) = await agents()
        own, _ = await node.observed(SYSTEM, before)

        guest.settings["agent"]["node"]["cri"] = {"pods": [entry]}
        await guest.measure(NODE)
        digest = PodContents.model_validate(entry).digest
        rule = {"name": "orders", "match": {"cri:pod-digest": digest}, "spiffe_id": NAME}
        signed = await guest.put_document(guest.document(2, workloads=[rule], pods=[entry]))
        (node.folder / "policy.json").write_bytes(signed)
        await node.wrap(sandbox_image, own)
        async with node.service():
            await kubectl("delete", "pod", "-n", SYSTEM, before, "--wait=true")
            await rolled_out(SYSTEM, AGENT)
            await served(node, asks)

            # Whoever writes to etcd edits the DaemonSet: nothing of what it became runs.
            await on_node("cp", "-r", MEASURED, EVIL)
            evil = f"--from-file={guest.folder}/deploy/overlays/snp/config/agent.yaml"
            await kubectl("create", "configmap", "-n", SYSTEM, "evil", evil)
            path = "jsonpath={.spec.template}"
            sound = json.loads(await kubectl("get", "-n", SYSTEM, AGENT, "-o", path))
            for what, edit in EDITS.items():
                edited = copy.deepcopy(sound)
                edit(edited)
                (name,) = await replace(edited)
                why = ("refused by sds admission", "no rule lists the container agent")
                await node.refused(name, *why, namespace=SYSTEM)
                print(f"{what}: refused")

            # The true object again: the agent starts, without anybody's help at the node.
            await replace(sound)
            await rolled_out(SYSTEM, AGENT)
            await served(node, asks)
    finally:
        await on_node("rm", "-rf", MEASURED, EVIL)
        await delete(guest.kustomization)
        await attempt("delete", "namespace", SYSTEM, "--ignore-not-found", "--wait=true")
