"""Settings that say where a kubelet or an API server is.

Invariant: inside a pod nothing has to be configured: addresses come from the environment that
Kubernetes sets, and root and token from the pod's service account.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import Field, model_validator

from sds.errors import ConfigurationError
from sds.settings.field_types import DnsNameField, PathField, ServerName, Settings
from sds.workload.kubernetes.server import SERVICE_ACCOUNT, KubernetesServer

if TYPE_CHECKING:
    from collections.abc import Mapping


NODE_ADDRESS: Final = "NODE_IP"
"""The environment variable with the node's address (downward API: ``status.hostIP``)."""
_KUBELET_PORT: Final = 10250
_KUBELET_ADVICE: Final = (
    "the agent's service account needs `get` on `nodes/pods` (deploy/base/agent-rbac.yaml); "
    "clusters before Kubernetes 1.33 need `nodes/proxy` (deploy/components/older-kubelet)"
)
_API_ADVICE: Final = "deploy/base/*-rbac.yaml has the permissions that its service account needs"


class ServerSettings(Settings):
    """A kubelet or an API server."""

    url: str | None = Field(
        default=None,
        description="`https://host:port`. If unset, it comes from the pod's environment.",
    )
    ca_file: PathField | None = Field(
        default=None,
        description="PEM roots of its certificate. If unset: those of the pod's service account.",
    )
    token_file: PathField | None = Field(
        default=None,
        description="File with a bearer token. If unset: the token of the pod's service account.",
    )
    server_name: ServerName | None = Field(
        default=None, description="The name in its certificate, if it is not the URL's host."
    )
    insecure_skip_verify: bool = Field(
        default=False,
        description="Do not verify its certificate. Allowed only for 127.0.0.1, and logged as a"
        " warning.",
    )

    @model_validator(mode="after")
    def _one_meaning(self) -> Self:
        for field in ("ca_file", "server_name"):
            if self.insecure_skip_verify and getattr(self, field) is not None:
                raise ValueError(
                    f"{field}: insecure_skip_verify is true, so nothing is verified by it: leave "
                    "one of them out"
                )
        return self


class KubernetesSettings(Settings):
    """The kubernetes attestor."""

    kubelet: ServerSettings = Field(
        default=ServerSettings(), description="The kubelet of this node."
    )
    api: ServerSettings = Field(default=ServerSettings(), description="The API server.")
    cgroup_root: Annotated[str, Field(pattern=r"^/")] | None = Field(
        default=None,
        description="The kubelet's `--cgroup-root`. Without it: `/` and `/kubelet`. A process "
        "counts as a pod's only directly below the kubelet's own directory there.",
    )
    runtime_cgroup: Annotated[str, Field(pattern=r"^/.")] | None = Field(
        default=None,
        description="The container runtime's own control group. Needed only if the kubelet uses "
        "the systemd driver, the runtime does not, and its service is not a known one "
        "(`containerd`, `crio`, `docker`, `k3s`, `rke2`, `k0s`, `microk8s`).",
    )
    services: bool = Field(
        default=True,
        description="Put the names of Services that select a pod into its certificate.",
    )
    cluster_domain: DnsNameField = Field(
        default="cluster.local",
        description="The last labels of the full names of Services. If it is another, name it in "
        "`service_dns_names` of rules, and in `kubernetes.dns_names` of the authority: what they "
        "are if unset has full names of `cluster.local` only.",
    )

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        for field in ("api", "cluster_domain"):
            written = getattr(self, field) != type(self).model_fields[field].default
            if written and not self.services:
                raise ValueError(f"{field}: it is for names of Services, and services is false")
        return self


def kubelet_server(settings: ServerSettings, environment: Mapping[str, str]) -> KubernetesServer:
    """Return where the kubelet is.

    Raises:
        ConfigurationError: it is neither configured nor in the environment, or is not allowed.
    """
    url = settings.url
    if url is None:
        address = environment.get(NODE_ADDRESS, "")
        if not address:
            raise ConfigurationError(
                "the kubelet's url is missing",
                advice=f"write it, or set {NODE_ADDRESS} from the downward API (status.hostIP)",
            )
        url = f"https://{_host(address)}:{_KUBELET_PORT}"
    return _server(settings, url, reason="kubelet", advice=_KUBELET_ADVICE)


def api_server(settings: ServerSettings, environment: Mapping[str, str]) -> KubernetesServer:
    """Return where the API server is.

    Raises:
        ConfigurationError: it is neither configured nor in the environment, or is not allowed.
    """
    url = settings.url
    if url is None:
        host = environment.get("KUBERNETES_SERVICE_HOST", "")
        if not host:
            raise ConfigurationError(
                "the url of the Kubernetes API server is missing, and this is not a pod",
                advice="write it",
            )
        url = f"https://{_host(host)}:{environment.get('KUBERNETES_SERVICE_PORT', '443')}"
    return _server(settings, url, reason="kubernetes_api", advice=_API_ADVICE)


def _server(
    settings: ServerSettings,
    url: str,
    *,
    reason: str,
    advice: str,
) -> KubernetesServer:
    return KubernetesServer(
        url=url,
        ca_file=settings.ca_file or SERVICE_ACCOUNT / "ca.crt",
        token_file=settings.token_file or SERVICE_ACCOUNT / "token",
        server_name=settings.server_name,
        insecure_skip_verify=settings.insecure_skip_verify,
        advice=advice,
        reason=reason,
    )


def _host(address: str) -> str:
    """Return the address as a URL writes it: IPv6 in brackets."""
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return address
    return f"[{address}]" if version == 6 else address  # noqa: PLR2004  a protocol's version
