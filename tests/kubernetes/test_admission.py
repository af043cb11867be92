"""``sds admission`` between a real kubelet and its containerd: who is refused, and what runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cluster import IMAGE, attempt, kubectl, until
from tests.support.guarded_node import NAMESPACE
from tests.support.guest_cluster import IDLE

if TYPE_CHECKING:
    from tests.support.guarded_node import GuardedNode

PROBE = ["cat", "/dev/null"]

pytestmark = pytest.mark.timeout(600)


def pod(name: str, **container: Any) -> dict[str, Any]:
    """A pod with an exec probe; ``container`` changes its only container."""
    main = {
        "name": "main",
        "image": IMAGE,
        "command": ["python3", "-c", IDLE],
        "readinessProbe": {"exec": {"command": PROBE}, "periodSeconds": 2, "timeoutSeconds": 30},
        **container,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [main],
        },
    }


async def test_a_listed_pod_runs_and_nothing_else_does(node: GuardedNode) -> None:
    kept = pod("kept")
    entry, sandbox_image = await node.listed(kept)
    assert entry["execs"], entry  # its probe
    node.publish(1, entry)
    await node.wrap(sandbox_image)
    async with node.service() as service:
        # Ready: the kubelet's own probe, which the rule lists, enters it.
        await node.start(kept)
        await node.ready("kept")

        # Nobody else enters: exec through the API server, and a container that joins.
        status, out, error = await attempt("exec", "-n", NAMESPACE, "kept", "--", "id")
        assert status != 0
        assert "uid=" not in out
        assert "refused by sds admission: admission_not_listed: no rule lists the process" in error
        joins = [{"name": "debug", "image": IMAGE, "command": ["sleep", "86400"]}]
        body = json.dumps({"spec": {"ephemeralContainers": joins}})
        words = ["--subresource=ephemeralcontainers", "--type=strategic", "-p", body]
        await kubectl("patch", "pod", "-n", NAMESPACE, "kept", *words)
        said = "no rule lists the container debug"
        await until(lambda: node.events("kept"), lambda found: said in found, 60)

        # The true image with other arguments; with a probe of its own, it runs and is not ready.
        await node.start(pod("other", command=["python3", "-c", "print('mine')"]))
        await node.refused("other", "refused by sds admission", "no rule lists the container main")
        await node.start(pod("typed", stdin=True))
        await node.refused("typed", "its standard input is open")
        probe = {"exec": {"command": ["cat", "/etc/hostname"]}, "periodSeconds": 1}
        await node.start(pod("probed", readinessProbe=probe))
        await until(
            lambda: node.events("probed"), lambda found: "no rule lists the process" in found, 60
        )

        # What SdsAdmissionRefuses asks.
        assert await node.decided("create", "admission_not_listed") >= 2
        assert await node.decided("create", "admission_form") >= 1
        assert await node.decided("exec", "admission_not_listed") >= 2
        assert await node.decided("create", "admitted") >= 2
        assert "admission_not_listed" in service.text
    # Without the service nothing starts, what runs goes on, and pods still end.
    await node.start(pod("late"))
    await node.refused("late", "refused by sds admission", "does not answer")
    for name in ("kept", "other", "typed", "probed", "late"):
        await node.delete(name)


async def test_a_pod_that_a_newer_policy_lists_runs_by_itself(node: GuardedNode) -> None:
    """The kubelet tries again: a signed policy is all that a roll-out needs."""
    kept = pod("kept")
    entry, sandbox_image = await node.listed(kept)
    node.publish(1)
    await node.wrap(sandbox_image)
    async with node.service() as service:
        await node.start(kept)
        await node.refused("kept", "no rule lists the sandbox")
        node.publish(2, entry)
        await service.line("policy of epoch 2 is in force")
        await node.ready("kept")
        # Withdrawn: what runs goes on, and nobody enters it any more.
        node.publish(3)
        await service.line("policy of epoch 3 is in force")
        said = "no rule lists the process"
        await until(lambda: node.events("kept"), lambda found: said in found, 60)
        await node.delete("kept")
