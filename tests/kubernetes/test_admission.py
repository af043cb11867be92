"""``sds admission`` between a real kubelet and its containerd: who is refused, and what runs.

The wrapper takes the place of the node's OCI runtime by a bind mount, for every handler at once, so
nothing of the node's configuration changes and nothing is restarted. ``SDS_NODE_SHELL`` must run a
command as root on the only node, with this checkout and the temporary folder at the same paths.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.support.cluster import IMAGE, attempt, check_unused, kubectl, state, until
from tests.support.guest_cluster import IDLE
from tests.support.node import short_folder
from tests.support.policies import Signatory, document, sign
from tests.support.process import output, running, sds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.process import Process

NODE = shlex.split(os.environ.get("SDS_NODE_SHELL", ""))
NAMESPACE = "shop"
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


async def on_node(*words: str) -> str:
    """What a command prints on the node; it must succeed."""
    status, out, error = await output([*NODE, *words], seconds=60)
    assert status == 0, error or out
    return out


@dataclass
class GuardedNode:
    """The node, and what ``sds admission`` has on it."""

    folder: Path
    runc: str
    signer: Signatory = field(default_factory=lambda: Signatory("alice"))

    async def start(self, manifest: dict[str, Any]) -> str:
        """Make a pod; its UID."""
        path = self.folder / "pod.yaml"
        path.write_text(yaml.safe_dump(manifest))
        name = manifest["metadata"]["name"]
        await kubectl("apply", "-f", str(path))
        return await kubectl("get", "pod", "-n", NAMESPACE, name, "-o", "jsonpath={.metadata.uid}")

    async def ready(self, name: str) -> None:
        words = ["-n", NAMESPACE, f"pod/{name}", "--for=condition=Ready", "--timeout=120s"]
        status, _, error = await attempt("wait", *words)
        assert status == 0, f"{error}\n{await self.events(name)}\n{await state()}"

    async def events(self, name: str) -> str:
        """What the kubelet says of a pod."""
        path = "jsonpath={range .items[*]}{.message}{'\\n'}{end}"
        about = f"--field-selector=involvedObject.name={name}"
        return await kubectl("get", "events", "-n", NAMESPACE, about, "-o", path)

    async def refused(self, name: str, *why: str) -> None:
        """The kubelet was told why, and no process of the pod runs."""
        await until(lambda: self.events(name), lambda said: all(each in said for each in why), 60)
        path = "jsonpath={.status.containerStatuses[*].state}"
        state_ = await kubectl("get", "pod", "-n", NAMESPACE, name, "-o", path)
        assert "running" not in state_

    async def delete(self, name: str) -> None:
        await kubectl("delete", "pod", "-n", NAMESPACE, name, "--wait=true", "--timeout=60s")

    async def listed(self, manifest: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The entry for ``pods:``, and the sandbox image's name, from a pod on the bare node."""
        uid = await self.start(manifest)
        name = manifest["metadata"]["name"]
        await self.ready(name)
        path = self.folder / "admitted.yaml"
        path.write_text(await kubectl("get", "pod", "-n", NAMESPACE, name, "-o", "yaml"))
        said = await on_node(*sds("policy", "pod", path, "--uid", uid, "--lines"))
        image = re.search(r'^#   image "(.*)"$', said, flags=re.MULTILINE)
        assert image, said
        await self.delete(name)
        (entry,) = yaml.safe_load(said)
        return dict(entry), image[1]

    def publish(self, epoch: int, *pods: dict[str, Any]) -> None:
        """A signed policy that lists these pods."""
        now = datetime.now(UTC)
        content = document(
            epoch,
            not_before=(now - timedelta(hours=1)).isoformat(),
            not_after=(now + timedelta(hours=1)).isoformat(),
            pods=list(pods),
        )
        fresh = self.folder / "policy.new"
        fresh.write_bytes(sign(content, self.signer))
        fresh.replace(self.folder / "policy.json")

    async def wrap(self, sandbox_image: str) -> None:
        """Put the wrapper into the place of the node's runtime."""
        real, wrapper = self.folder / "runc", self.folder / "attested-runc"
        config = {
            "trust_domain": "example.org",
            "policy": {
                "file": str(self.folder / "policy.json"),
                "keys": [self.signer.public.pem],
            },
            "runtime": {"oci": str(real), "sandbox_image": sandbox_image},
            "run_dir": str(self.folder / "run"),
            "wrapper": str(wrapper),
            # The mount below is over the file that every handler executes.
            "containerd_config": None,
            "kubelet_config": None,
            "metrics": {"listen": f"unix:{self.folder}/metrics.sock"},
        }
        self.config.write_text(yaml.safe_dump(config))
        status, script, error = await output(sds("admission", "wrapper", "--config", self.config))
        assert status == 0, error
        wrapper.write_text(script + "\n")
        wrapper.chmod(0o755)
        await on_node("cp", self.runc, str(real))
        await on_node("mount", "--bind", str(wrapper), self.runc)

    @property
    def config(self) -> Path:
        return self.folder / "admission.yaml"

    @contextlib.asynccontextmanager
    async def service(self) -> AsyncIterator[Process]:
        """``sds admission`` on the node."""
        pid = self.folder / "pid"
        serve = shlex.join(sds("admission", "serve", "--config", self.config))
        words = [*NODE, "sh", "-c", f"echo $$ > {pid}; exec {serve}"]
        async with running(words, name="admission") as process:
            try:
                await process.line("READY")
                yield process
            finally:
                # The shell that reaches the node may not pass a signal on.
                await on_node("sh", "-c", f"kill $(cat {pid})")

    async def decided(self, command: str, decision: str) -> float:
        """``sds_admission_decisions_total``."""
        socket = str(self.folder / "metrics.sock")
        text = await on_node("curl", "-s", "--unix-socket", socket, "http://x/metrics")
        labels = f'{{command="{command}",decision="{decision}"}}'
        found = re.search(re.escape(f"sds_admission_decisions_total{labels}") + r" (\S+)", text)
        return float(found[1]) if found else 0.0


@pytest.fixture
async def node() -> AsyncIterator[GuardedNode]:
    if not NODE:
        pytest.skip("SDS_NODE_SHELL names no command that reaches the node")
    await check_unused(NAMESPACE)
    await kubectl("create", "namespace", NAMESPACE)
    runc = (await on_node("sh", "-c", "command -v runc")).strip()
    with short_folder() as folder:
        try:
            yield GuardedNode(folder, runc)
        finally:
            mounted = f"! mountpoint -q {runc} || umount {runc}"
            await on_node("sh", "-c", mounted)
            await attempt("delete", "namespace", NAMESPACE, "--wait=true", seconds=300)


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
