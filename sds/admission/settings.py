"""Defines the configuration of ``sds admission``, which belongs in the measured image.

Owns :class:`AdmissionConfig`. Invariant: every decision depends on this configuration and the
signed policy alone, never on settings of the kubelet or the API server.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, StrictBool, model_validator

from sds.operations.settings import MetricsSection  # noqa: TC001  pydantic reads it
from sds.policy.settings import PolicySettings  # noqa: TC001  as above
from sds.settings.field_types import AbsolutePath, PathField, Settings, TrustDomainField
from sds.workload.cri.settings import PodContents, RuntimePlaces


class AdmissionRuntime(RuntimePlaces):
    """The container runtime; `socket` and directories are as under `node.cri`."""

    oci: AbsolutePath = Field(
        default="/usr/sbin/runc", description="The real OCI runtime, which the wrapper executes."
    )
    sandbox_image: str = Field(
        default="registry.k8s.io/pause:3.8",
        description="The sandbox image as containerd's configuration names it (`sandbox_image`): "
        "it is a line of the sandbox's canonical form, and the bundle does not say it.",
    )


class AdmissionConfig(Settings):
    """Which containers may start on this node, and who may enter them."""

    trust_domain: TrustDomainField = Field(description="Of the policy.")
    enforce: StrictBool = Field(
        default=True,
        description="`false`: a container or process that no rule allows is logged and counted, "
        "and runs.",
    )
    policy: PolicySettings = Field(description="The signed policy; its `pods` are the rules.")
    policy_copy: AbsolutePath | None = Field(
        default=None,
        description="The agent's `policy_copy`: later policies that it learnt from its authority. "
        "The service verifies them like its own; the file may be missing.",
    )
    always: tuple[PodContents, ...] = Field(
        default=(),
        description="Pods that run without any policy: the agent's own, exactly. `sds policy pod` "
        "writes the entry.",
    )
    runtime: AdmissionRuntime = AdmissionRuntime()
    run_dir: PathField = Field(
        default=Path("/run/attested-sds-admission"),
        description="Directory of the socket `admission.sock` and of what is remembered: the "
        "highest epoch and the sandboxes that run. Only root may enter it.",
    )
    wrapper: AbsolutePath = Field(
        default="/usr/local/sbin/attested-runc",
        description="Path of the wrapper in the image (`sds admission wrapper`).",
    )
    containerd_config: PathField | None = Field(
        default=Path("/etc/containerd/config.toml"),
        description="Checked at start: every handler must run the wrapper. `null`: not checked.",
    )
    kubelet_config: PathField | None = Field(
        default=Path("/var/lib/kubelet/config.yaml"),
        description="Checked at start: debugging handlers must be off. `null`: not checked.",
    )
    metrics: MetricsSection | None = Field(default=None, description="Prometheus metrics.")

    @model_validator(mode="after")
    def _no_circle(self) -> Self:
        if self.runtime.oci == self.wrapper:
            raise ValueError(
                "runtime.oci is the wrapper itself, which would execute itself forever"
            )
        return self

    @property
    def socket(self) -> Path:
        """Return where the service listens."""
        return self.run_dir / "admission.sock"
