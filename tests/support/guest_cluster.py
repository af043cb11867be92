"""The deployment of confidential guests on a test cluster, with a simulated chip and signed policy.

It applies deploy/overlays/snp with deploy/components/cri as it is shipped, and changes only what a
machine without the hardware needs: the programs run under ``sds simulate``.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import yaml

from sds.attestation.guest.tsm import IN_A_CONTAINER
from tests.support import need
from tests.support.cluster import (
    AGENT,
    IMAGE,
    KUBECTL,
    SYSTEM,
    attempt,
    image,
    kubectl,
    kustomization,
    merged,
    patch,
    rolled_out,
    state,
    until,
    without_dns,
)
from tests.support.policies import Signatory, document, sign
from tests.support.process import output

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

AGENTS, AUTHORITIES = "aa" * 48, "cc" * 48
SOCKET = "/run/attested-sds/node/sds.sock"
POLICY = "/etc/attested-sds-policy"
CONFIG = "/etc/attested-sds"
MEASURED = "/run/attested-sds-measured"
"""Of the node, in place of :data:`CONFIG` of a measured image."""
IDLE = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit()); time.sleep(86400)"
EVERYTHING = ("sts/attested-sds-root", "deploy/attested-sds-issuer", AGENT)
NAMESPACES = ("shop", "claims")


def container(name: str = "main", **changes: Any) -> dict[str, Any]:
    """A container that can ask the node's socket."""
    return {
        "name": name,
        "image": IMAGE,
        "command": ["python3", "-c", IDLE],
        "volumeMounts": [
            {"name": "attested-sds", "mountPath": "/run/attested-sds/node", "readOnly": True}
        ],
        **changes,
    }


def pod(
    name: str, namespace: str, account: str, *containers: dict[str, Any], **changes: Any
) -> dict[str, Any]:
    """A pod as its manifest says."""
    metadata = {"name": name, "namespace": namespace, "labels": changes.pop("labels", {})}
    volumes = [
        {
            "name": "attested-sds",
            "hostPath": {"path": "/run/attested-sds/node", "type": "Directory"},
        }
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "serviceAccountName": account,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "containers": list(containers) or [container()],
            "volumes": [*volumes, *changes.pop("volumes", [])],
            **changes,
        },
    }


@dataclass
class GuestCluster:
    """What is installed, and who signs its policy."""

    folder: Path
    signer: Signatory = field(default_factory=lambda: Signatory("alice"))
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    components: tuple[str, ...] = ("cri",)
    patches: tuple[dict[str, Any], ...] = ()

    @property
    def kustomization(self) -> Path:
        return self.folder / "guest"

    def prepare(self) -> None:
        """The shipped overlay, with measurements, keys and policy in place of its zeros."""
        shutil.copytree(need.ROOT / "deploy", self.folder / "deploy")
        zeros = "0" * 96
        for name, whose in (("agent", AUTHORITIES), ("issuer", AGENTS), ("root", AUTHORITIES)):
            text = (self.folder / f"deploy/overlays/snp/config/{name}.yaml").read_text()
            given = yaml.safe_load(text.replace(zeros, whose))
            # Names and groups of nodes come from the signed policy.
            for key in ("identities", "workloads"):
                given.pop(key, None)
            given["policy"] = {
                "file": f"{POLICY}/policy.json",
                "keys": [self.signer.public.pem],
            }
            self.settings[name] = given
        signing = self.settings["issuer"]["signer"]["verification"]["reference_values"]
        signing["measurements"] = [AUTHORITIES]
        # What waits for minutes in earnest waits for seconds here.
        self.settings["agent"]["node"] = {
            "attestors": ["cri", "kubernetes"],
            "hold": "2s",
            "recheck": "2s",
        }

    def write(self) -> None:
        """The files that ``kubectl apply -k`` takes."""
        for name, given in self.settings.items():
            path = self.folder / f"deploy/overlays/snp/config/{name}.yaml"
            path.write_text(yaml.safe_dump(given, sort_keys=False))
        self.kustomization.mkdir(exist_ok=True)
        simulated = []
        for kind, name, inner, measurement in (
            ("DaemonSet", "agent", "agent", AGENTS),
            ("Deployment", "issuer", "ca", AUTHORITIES),
            ("StatefulSet", "root", "ca", AUTHORITIES),
        ):
            config = f"{CONFIG}/{name}.yaml"
            command = ["sds", inner, "--config", config, "--log-format", "json"]
            machine = ["--machines", "/machines/sim", "--measurement", measurement, "--"]
            body = {
                "containers": [
                    {
                        "name": name,
                        "args": ["simulate", *machine, *command],
                        "volumeMounts": [
                            {"mountPath": str(IN_A_CONTAINER), "$patch": "delete"},
                            {"mountPath": "/machines", "name": "machines"},
                            {"mountPath": POLICY, "name": "policy", "readOnly": True},
                        ],
                    }
                ],
                "volumes": [
                    {"name": "tsm", "$patch": "delete"},
                    {"name": "policy", "configMap": {"name": "attested-sds-policy"}},
                    {
                        "name": "machines",
                        "hostPath": {
                            "path": "/run/attested-sds-machines",
                            "type": "DirectoryOrCreate",
                        },
                    },
                ],
            }
            spec: dict[str, Any] = {"template": {"spec": body}}
            if name == "issuer":
                spec["replicas"] = 1
            simulated.append(merged(kind, f"attested-sds-{name}", {"spec": spec}))
        # One issuer can be away while its pod is replaced: its budget would wait for two.
        surge = {"maxUnavailable": 1, "maxSurge": 0}
        simulated.append(
            patch("Deployment", "attested-sds-issuer", ("/spec/strategy/rollingUpdate", surge))
        )
        kustomization(
            self.kustomization,
            resources=["../deploy/overlays/snp"],
            components=[f"../deploy/components/{each}" for each in self.components],
            images=[image("attested-sds", IMAGE)],
            patches=[*simulated, *without_dns(), *self.patches],
        )

    async def apply(self) -> None:
        """Apply what is written, and wait until all of it runs."""
        self.write()
        await kubectl("apply", "-k", str(self.kustomization))
        await rolled_out(SYSTEM, *EVERYTHING)

    async def measure(self, node: Sequence[str]) -> None:
        """deploy/components/measured-configuration: the node has the configurations, not etcd.

        Args:
            node: runs a command on the node.
        """
        for name, given in self.settings.items():
            text = shlex.quote(yaml.safe_dump(given))
            write = f"mkdir -p {MEASURED} && printf %s {text} > {MEASURED}/{name}.yaml"
            status, _, error = await output([*node, "sh", "-c", write])
            assert status == 0, error
        if "measured-configuration" in self.components:
            return
        volume = {"name": "config", "hostPath": {"path": MEASURED, "type": "Directory"}}
        body = {"spec": {"template": {"spec": {"volumes": [volume]}}}}
        self.components = (*self.components, "measured-configuration")
        self.patches = (
            merged("DaemonSet", "attested-sds-agent", body),
            merged("Deployment", "attested-sds-issuer", body),
            merged("StatefulSet", "attested-sds-root", body),
        )

    # --- policy ---------------------------------------------------------------------------------

    def document(self, epoch: int, **fields: Any) -> dict[str, Any]:
        """A policy that gives nodes of both kinds what they need."""
        now = datetime.now(UTC)
        grants = [
            {
                "spiffe_ids": ["spiffe://example.org/ns/*/sa/*"],
                "dns_names": fields.pop("dns_names", []),
                "max_lifetime": "1h",
            }
        ]
        return document(
            epoch,
            not_before=f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}",
            not_after=f"{now + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}",
            reference_values={
                # Who asks: agents, and issuing replicas the root.
                "agents": {"measurements": [AGENTS, AUTHORITIES]},
                "authorities": {"measurements": [AUTHORITIES]},
            },
            nodes=[
                {"name": "workers", "measurements": [AGENTS], "grants": grants},
                {
                    "name": "authorities",
                    "measurements": [AUTHORITIES],
                    "authority": {"path_length": 0, "max_lifetime": "7d"},
                },
            ],
            **fields,
        )

    async def put_policy(self, signed: bytes) -> None:
        """Write the policy's ConfigMap, and let the kubelet look at it now."""
        manifest = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "attested-sds-policy", "namespace": SYSTEM},
            "data": {"policy.json": signed.decode()},
        }
        await self.apply_one(manifest)
        await self.touch()

    async def put_document(self, given: dict[str, Any]) -> bytes:
        """Sign a document and put it in place; the signed bytes."""
        signed = bytes(sign(given, self.signer))
        await self.put_policy(signed)
        return signed

    async def touch(self) -> None:
        """Let the kubelet look at ConfigMaps of every pod of the system now."""
        await attempt(
            *("annotate", "pods", "-n", SYSTEM, "--all", "--overwrite"),
            f"test/touched={time.monotonic_ns()}",
        )

    async def in_force(self, epoch: int) -> None:
        """Wait until the agent has this epoch in force."""
        await until(self.status, lambda found: found["policy"]["epoch"] == epoch)

    # --- pods -----------------------------------------------------------------------------------

    async def apply_one(self, manifest: dict[str, Any]) -> None:
        path = self.folder / "manifest.yaml"
        path.write_text(yaml.safe_dump(manifest, sort_keys=False))
        await kubectl("apply", "-f", str(path))

    async def start(self, manifest: dict[str, Any]) -> None:
        """Make a pod, in place of one of the same name, and wait until it is ready."""
        name, namespace = (manifest["metadata"][key] for key in ("name", "namespace"))
        await attempt("delete", "pod", "-n", namespace, name, "--ignore-not-found", "--wait=true")
        await self.apply_one(manifest)
        status, _, error = await attempt(
            *("wait", "-n", namespace, f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
        )
        assert status == 0, f"{error}\n{await state()}"

    async def contents(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """What ``sds policy pod`` lists of a pod that runs, as docs/kubernetes.md says."""
        name, namespace = (manifest["metadata"][key] for key in ("name", "namespace"))
        there = await kubectl("get", "pod", "-n", namespace, name, "-o", "yaml")
        uid = yaml.safe_load(there)["metadata"]["uid"]
        command = "cat > /tmp/pod.yaml && sds policy pod /tmp/pod.yaml --uid " + shlex.quote(uid)
        path = self.folder / "admitted.yaml"
        path.write_text(there)
        words = [*KUBECTL, "exec", "-i", "-n", SYSTEM, AGENT, "--", "sh", "-c", command]
        line = f"{shlex.join(words)} < {shlex.quote(str(path))}"
        status, out, error = await output(["sh", "-c", line], seconds=60)
        assert status == 0, error
        (listed,) = yaml.safe_load(out)
        return dict(listed)

    async def ask(self, namespace: str, name: str) -> dict[str, Any]:
        """What the agent says about the pod's container ``main``."""
        words = ["sds", "whoami", "--socket", SOCKET, "--output", "json"]
        _, out, error = await attempt("exec", "-n", namespace, name, "-c", "main", "--", *words)
        return dict(json.loads(out)) if out else {"identities": [], "why": error}

    async def identity(self, namespace: str, name: str) -> str | None:
        """SPIFFE ID of the pod, or None."""
        found = (await self.ask(namespace, name))["identities"]
        return str(found[0]["spiffe_id"]) if found else None

    async def status(self) -> dict[str, Any]:
        """``sds status`` of the agent."""
        words = ["sds", "status", "--run-dir", "/run/attested-sds", "--output", "json"]
        _, out, _ = await attempt("exec", "-n", SYSTEM, AGENT, "--", *words)
        return dict(json.loads(out)) if out else {"policy": {"epoch": None}}

    async def log(self) -> list[dict[str, Any]]:
        """What the agent logged."""
        _, out, _ = await attempt("logs", "-n", SYSTEM, AGENT)  # fails before its container starts
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    async def said(self, message: str, *words: str) -> dict[str, Any]:
        """Wait for a line of the agent's log that has the message and all of these words."""

        async def look() -> list[dict[str, Any]]:
            return [
                line
                for line in await self.log()
                if message in json.dumps(line) and all(each in json.dumps(line) for each in words)
            ]

        found, _ = await until(look, bool, 60)
        return dict(found[-1])
