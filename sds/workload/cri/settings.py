"""Settings of the ``cri`` attestor: where the runtime is, and which pods rules may name.

Owns :class:`CriSettings` and the digest of a pod's list. Invariant: a rule names a pod by the
digest of its list, so the list itself may come from anywhere: an altered list has another digest,
which no signed rule names.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Self

from pydantic import Field, model_validator

from sds.settings.field_types import AbsolutePath, Settings
from sds.workload.cri.canonical import CanonicalContainer

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class PodContents(Settings):
    """What a pod may consist of. `sds policy pod` writes it."""

    name: str = Field(description="A name for people; nothing depends on it.", default="")
    sandbox: Digest = Field(description="Digest of the pod's sandbox.")
    containers: Annotated[tuple[Digest, ...], Field(min_length=1)] = Field(
        description="Digests of all containers that may ever be in the pod: those that run, init "
        "containers and sidecars. One that is not listed takes the identity from the whole pod."
    )
    execs: tuple[Digest, ...] = Field(
        default=(),
        description="Digests of all processes that may be started inside the containers: exec "
        "probes and hooks. `sds admission` refuses every other one; the agent alone cannot see "
        "them.",
    )
    unmeasured: tuple[str, ...] = Field(
        default=(),
        description="Volumes and host paths whose content nothing measures, as `sds policy pod` "
        "writes them. A pod with one that is not listed is refused.",
    )

    lines: dict[Digest, tuple[str, ...]] = Field(
        default={},
        description="For people: the canonical lines of containers by their digests, as `sds "
        "policy pod --keep-lines` writes them. `sds whoami` shows which line differs.",
    )

    @model_validator(mode="after")
    def _lines_agree(self) -> Self:
        for digest, lines in self.lines.items():
            found = CanonicalContainer(lines=lines, unmeasured=frozenset()).digest
            if found != digest:
                raise ValueError(f"lines: the lines of {digest} have the digest {found}")
        return self

    @property
    def digest(self) -> str:
        """Return ``sha256:…`` of the list, the value of ``cri:pod-digest``."""
        listed = {
            "containers": sorted(set(self.containers)),
            "sandbox": self.sandbox,
            "unmeasured": sorted(set(self.unmeasured)),
        }
        if self.execs:
            listed["execs"] = sorted(set(self.execs))
        text = json.dumps(listed, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


class RuntimePlaces(Settings):
    """Where the runtime and its files are."""

    socket: AbsolutePath = Field(
        default="/run/containerd/containerd.sock", description="The runtime's CRI socket."
    )
    kubelet_directory: AbsolutePath = Field(
        default="/var/lib/kubelet", description="The kubelet's `--root-dir`."
    )
    runtime_directories: tuple[AbsolutePath, ...] = Field(
        default=(
            "/var/lib/containerd",
            "/run/containerd",
            "/var/lib/rancher/k3s/agent/containerd",
            "/run/k3s/containerd",
        ),
        description="The runtime's `root` and `state`, where it makes files of sandboxes.",
    )


class CriSettings(RuntimePlaces):
    """The cri attestor."""

    pods: tuple[PodContents, ...] = Field(
        default=(), description="The pods that rules on `cri:pod-digest` may name."
    )
