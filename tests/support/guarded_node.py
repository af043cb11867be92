"""A real node with ``sds admission`` between its kubelet and its containerd.

The wrapper takes the place of the node's OCI runtime by a bind mount, for every handler at once, so
nothing of the node's configuration changes and nothing is restarted. ``SDS_NODE_SHELL`` must run a
command as root on the only node, with this checkout and the temporary folder at the same paths.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.cluster import attempt, kubectl, state, until
from tests.support.node import short_folder
from tests.support.policies import Signatory, document, sign
from tests.support.process import output, running, sds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.process import Process

NODE = shlex.split(os.environ.get("SDS_NODE_SHELL", ""))
NAMESPACE = "shop"


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

    async def start(self, manifest: dict[str, Any]) -> None:
        """Make a pod."""
        path = self.folder / "pod.yaml"
        path.write_text(yaml.safe_dump(manifest))
        await kubectl("apply", "-f", str(path))

    async def ready(self, name: str) -> None:
        words = ["-n", NAMESPACE, f"pod/{name}", "--for=condition=Ready", "--timeout=120s"]
        status, _, error = await attempt("wait", *words)
        assert status == 0, f"{error}\n{await self.events(name)}\n{await state()}"

    async def events(self, name: str, namespace: str = NAMESPACE) -> str:
        """What the kubelet says of a pod."""
        path = "jsonpath={range .items[*]}{.message}{'\\n'}{end}"
        about = f"--field-selector=involvedObject.name={name}"
        return await kubectl("get", "events", "-n", namespace, about, "-o", path)

    async def refused(self, name: str, *why: str, namespace: str = NAMESPACE) -> None:
        """The kubelet was told why, and no process of the pod runs."""
        await until(
            lambda: self.events(name, namespace),
            lambda said: all(each in said for each in why),
            60,
        )
        path = "jsonpath={.status.containerStatuses[*].state}"
        state_ = await kubectl("get", "pod", "-n", namespace, name, "-o", path)
        assert "running" not in state_

    async def delete(self, name: str) -> None:
        await kubectl("delete", "pod", "-n", NAMESPACE, name, "--wait=true", "--timeout=60s")

    async def listed(self, manifest: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The entry for ``pods:``, and the sandbox image's name, from a pod on the bare node."""
        await self.start(manifest)
        name = manifest["metadata"]["name"]
        await self.ready(name)
        found = await self.observed(NAMESPACE, name)
        await self.delete(name)
        return found

    async def observed(self, namespace: str, name: str) -> tuple[dict[str, Any], str]:
        """The entry for a pod that runs, and the sandbox image's name."""
        path = self.folder / "admitted.yaml"
        path.write_text(await kubectl("get", "pod", "-n", namespace, name, "-o", "yaml"))
        uid = yaml.safe_load(path.read_text())["metadata"]["uid"]
        said = await on_node(*sds("policy", "pod", path, "--uid", uid, "--lines"))
        image = re.search(r'^#   image "(.*)"$', said, flags=re.MULTILINE)
        assert image, said
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

    async def wrap(self, sandbox_image: str, *always: dict[str, Any]) -> None:
        """Put the wrapper into the place of the node's runtime.

        Args:
            sandbox_image: as containerd's configuration names it.
            always: pods that start without a policy.
        """
        real, wrapper = self.folder / "runc", self.folder / "attested-runc"
        config = {
            "trust_domain": "example.org",
            "policy": {
                "file": str(self.folder / "policy.json"),
                "keys": [self.signer.public.pem],
            },
            "always": list(always),
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


@contextlib.asynccontextmanager
async def guarded_node() -> AsyncIterator[GuardedNode]:
    """The node, with its own runtime and the namespace; both are as before after the block."""
    await kubectl("create", "namespace", NAMESPACE)
    runc = (await on_node("sh", "-c", "command -v runc")).strip()
    with short_folder() as folder:
        try:
            yield GuardedNode(folder, runc)
        finally:
            mounted = f"! mountpoint -q {runc} || umount {runc}"
            await on_node("sh", "-c", mounted)
            await attempt("delete", "namespace", NAMESPACE, "--wait=true", seconds=300)
