"""A node whose runtime asks ``sds admission``: real containerd, real runc, the real service."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import yaml

from tests.support import need
from tests.support.policies import Signatory, document, sign
from tests.support.process import Process, output, running, sds

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sds.workload.cri.settings import PodContents
    from tests.support.containerd import Containerd

RUNTIMES = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    BinaryName = "{wrapper}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other.options]
    BinaryName = "{wrapper}"
"""
BARE = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.bare]
  runtime_type = "io.containerd.runc.v2"
"""
KUBELET = """
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
enableDebuggingHandlers: false
"""


@dataclass
class AdmissionNode:
    """Files of one service in ``folder``, and whoever signs its policy."""

    folder: Path
    runtime: Containerd
    alice: Signatory = field(default_factory=lambda: Signatory("alice"))
    epoch: int = 0

    @property
    def wrapper(self) -> Path:
        return self.folder / "attested-runc"

    @property
    def policy(self) -> Path:
        return self.folder / "policy.json"

    async def configure(self, **changes: Any) -> Path:
        """Write the configuration and the wrapper; the configuration's path."""
        containerd, kubelet = self.folder / "checked.toml", self.folder / "kubelet.yaml"
        containerd.write_text("version = 2\n" + RUNTIMES.format(wrapper=self.wrapper))
        kubelet.write_text(KUBELET)
        config = {
            "trust_domain": "example.org",
            "policy": {"file": str(self.policy), "keys": [self.alice.public.pem]},
            "runtime": {
                "socket": self.runtime.socket,
                "runtime_directories": list(self.runtime.directories),
                "oci": need.tool("runc"),
                "sandbox_image": "localhost/pause:1",
            },
            "run_dir": str(self.folder / "run"),
            "wrapper": str(self.wrapper),
            "containerd_config": str(containerd),
            "kubelet_config": str(kubelet),
            **changes,
        }
        path = self.folder / "admission.yaml"
        path.write_text(yaml.safe_dump(config))
        code, script, errors = await output(sds("admission", "wrapper", "--config", path))
        assert code == 0, errors
        fresh = self.wrapper.with_suffix(".new")
        fresh.write_text(script + "\n")  # the process's lines, joined
        fresh.chmod(0o755)
        fresh.replace(self.wrapper)
        return path

    def signed(self, *pods: PodContents, epoch: int, hours: float = 1) -> bytes:
        now = datetime.now(UTC)
        return sign(
            document(
                epoch,
                not_before=(now - timedelta(hours=2)).isoformat(),
                not_after=(now + timedelta(hours=hours)).isoformat(),
                pods=[json.loads(pod.model_dump_json()) for pod in pods],
            ),
            self.alice,
        )

    def publish(self, content: bytes) -> None:
        """Put a signed policy where the service reads it."""
        fresh = self.policy.with_suffix(".new")
        fresh.write_bytes(content)
        fresh.replace(self.policy)

    @contextlib.asynccontextmanager
    async def service(self, *pods: PodContents, **changes: Any) -> AsyncIterator[Process]:
        """The service with a policy of a new epoch that lists these pods."""
        self.epoch += 1
        self.publish(self.signed(*pods, epoch=self.epoch))
        async with self.running(**changes) as process:
            yield process

    @contextlib.asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[Process]:
        """The service as its files are."""
        path = await self.configure(**changes)
        async with running(sds("admission", "serve", "--config", path), name="admission") as it:
            await it.line("READY")
            yield it


async def why_refused(call: Any) -> str:
    """What the runtime says of a call that fails."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.details() or ""
    raise AssertionError("nothing refused it")
