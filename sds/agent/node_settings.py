"""Settings of the node-wide socket: attestors, how long to wait, where Kubernetes is.

Owns the section ``node:`` of the agent's configuration. Invariant: inside a pod, only the list of
attestors must be configured.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from sds.files import SOCKET_PATH_BYTES
from sds.settings.field_types import AbsolutePath, Duration, Settings
from sds.workload.attestors import ATTESTORS
from sds.workload.cri.settings import CriSettings
from sds.workload.kubernetes.settings import KubernetesSettings
from sds.workload.mapping import Matching


class CsiSettings(Settings):
    """A CSI driver for ephemeral inline volumes: a socket for each pod, without a hostPath."""

    driver: Annotated[
        str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$", max_length=63)
    ] = Field(
        default="csi.attested-sds", description="Name of the driver, as in the CSIDriver object."
    )
    kubelet_dir: AbsolutePath = Field(
        default="/var/lib/kubelet",
        description="The kubelet's root directory. The agent needs its `pods`, `plugins/DRIVER` "
        "and `plugins_registry`, writable, at the same paths.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        longest = f"{self.kubelet_dir}/plugins_registry/{self.driver}-00000000-reg.sock"
        if len(os.fsencode(longest)) > SOCKET_PATH_BYTES:
            raise ValueError(
                f"driver: the socket {longest} has more than {SOCKET_PATH_BYTES} bytes, too many "
                "for a Unix socket: use a shorter name"
            )
        return self


_OF_PODS = frozenset({"cgroup_root", "runtime_cgroup"})
"""The settings of `kubernetes` that every attestor needs that tells pods apart."""
_SHORTEST_LOOK = timedelta(milliseconds=100)


def _check_look(look: timedelta) -> timedelta:
    if look < _SHORTEST_LOOK:
        raise ValueError("ask the kubelet at most once in 100ms")
    return look


class AheadSettings(Settings):
    """Certificates are minted for pods as soon as the kubelet lists them."""

    identities: Annotated[int, Field(gt=0, le=65536)] = Field(
        default=256, description="How many the agent keeps for callers that have not come yet."
    )
    patience: Duration = Field(
        default=timedelta(seconds=60),
        description="How long after the start of a pod it keeps one for which nobody has come; "
        "ten times as long where the pod does not start.",
    )
    look: Annotated[Duration, AfterValidator(_check_look)] = Field(
        default=timedelta(seconds=0.5), description="How often it asks the kubelet for its pods."
    )


class NodeSettings(Settings):
    """The node-wide socket, `<run_dir>/node/sds.sock`, for all processes of the node."""

    attestors: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        description="What finds out who a caller is, in this order: `socket`, `unix`, "
        "`kubernetes`, `cri`."
    )
    matching: Matching = Field(
        default=Matching.FIRST,
        description="`first`: the first rule that matches decides alone. `all`: every rule that"
        " matches gives an identity.",
    )
    hold: Duration = Field(
        default=timedelta(seconds=30),
        description="How long a caller that no rule matches waits before the agent refuses it.",
    )
    recheck: Duration = Field(
        default=timedelta(seconds=30),
        description="How often the agent looks at a connected caller again.",
    )
    linger: Duration = Field(
        default=timedelta(seconds=30),
        description="How long the agent keeps an identity after its last caller left.",
    )
    connections: Annotated[int, Field(gt=0, le=65536)] = Field(
        default=4096, description="How many connections the socket may have at once."
    )
    connections_per_owner: Annotated[int, Field(gt=0, le=65536)] = Field(
        default=128,
        description="How many of them may come from one pod, or from one user outside pods.",
    )
    largest_executable: Annotated[int, Field(ge=1 << 20, le=1 << 40)] = Field(
        default=512 << 20,
        description="The largest executable, in bytes, that the agent hashes for a rule on "
        "`unix:sha256`. For each pod or user it hashes at most twice as much at "
        "once, and 16 MiB more each second.",
    )
    kubernetes: KubernetesSettings = Field(
        default=KubernetesSettings(), description="Settings of the attestor `kubernetes`."
    )
    ahead: AheadSettings | None = Field(
        default=None,
        description="Mint certificates before callers ask, where rules need no fact of the "
        "process itself. Each caller is recognised when it connects, as without this block.",
    )
    csi: CsiSettings | None = Field(
        default=None,
        description="Serve each pod on a socket of its own, in a CSI volume. Without this block"
        " there is no CSI driver.",
    )

    cri: CriSettings = Field(default=CriSettings(), description="The cri attestor.")
    others: dict[str, dict[str, Any]] = Field(
        default={},
        description="Settings of further attestors, by name. Their modules say what may be "
        "written.",
    )

    @model_validator(mode="after")
    def _more_than_the_socket(self) -> Self:
        known = ", ".join(ATTESTORS)
        for name in self.attestors:
            if name not in ATTESTORS:
                raise ValueError(f"attestors: there is no {name[:40]!r}; there are {known}")
        if not any(ATTESTORS[name].alone for name in self.attestors):
            raise ValueError(
                "attestors: the node-wide socket needs 'unix', 'kubernetes' or 'cri': everybody "
                "can open it, so its name alone says nothing"
            )
        if self.ahead is not None and "kubernetes" not in self.attestors:
            raise ValueError("ahead: needs the attestor 'kubernetes', which lists pods")
        if self.csi is not None and not any(ATTESTORS[name].pods for name in self.attestors):
            raise ValueError("csi: needs an attestor that tells pods apart: 'kubernetes' or 'cri'")
        if len(set(self.attestors)) != len(self.attestors):
            raise ValueError("attestors: one is listed twice")
        return self

    @property
    def asks_for_services(self) -> bool:
        """Say whether the API server is asked which Services select a pod."""
        return "kubernetes" in self.attestors and self.kubernetes.services

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        """Refuse what was written and what nothing would read."""
        written = self.largest_executable != type(self).model_fields["largest_executable"].default
        if written and "unix" not in self.attestors:
            raise ValueError(
                "largest_executable: attestors does not name 'unix', which hashes them"
            )
        for name in self.others:
            if name not in self.attestors:
                raise ValueError(f"others: attestors does not name {name[:40]!r}")
        if self.cri != CriSettings() and "cri" not in self.attestors:
            raise ValueError("cri: attestors does not name 'cri', so nothing reads this block")
        pods = any(ATTESTORS[name].pods for name in self.attestors)
        if self.kubernetes != KubernetesSettings() and not pods:
            raise ValueError(
                "kubernetes: attestors names neither 'kubernetes' nor 'cri', so nothing reads this "
                "block"
            )
        for field in sorted(KubernetesSettings.model_fields.keys() - _OF_PODS):
            is_written = getattr(self.kubernetes, field) != getattr(KubernetesSettings(), field)
            if is_written and "kubernetes" not in self.attestors:
                raise ValueError(
                    f"kubernetes.{field}: attestors does not name 'kubernetes', so nothing reads it"
                )
        return self
