"""Settings of the node-wide socket: attestors, how long to wait, where Kubernetes is.

Owns the section ``node:`` of the agent's configuration. Invariant: inside a pod nothing but the
list of attestors has to be written; addresses come from the environment that Kubernetes gives.
"""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field, model_validator

from sds.errors import ConfigurationError, KubeletError, KubernetesApiError
from sds.fields import Duration, PathField, Settings
from sds.workload.mapping import Matching

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from sds.workload.kubernetes.api import Server

NODE_ADDRESS: Final = "NODE_IP"
"""Environment variable with the node's address (downward API: ``status.hostIP``)."""
_KUBELET_PORT: Final = 10250
_KUBELET_ADVICE: Final = (
    "the agent's service account needs `get` on `nodes/pods` (deploy/base/rbac.yaml); clusters "
    "before Kubernetes 1.33 need `nodes/proxy` (deploy/components/older-kubelet)"
)
_API_ADVICE: Final = (
    "the agent's service account needs `list` and `watch` on `services` (deploy/base/rbac.yaml)"
)


class AttestorName(StrEnum):
    """Attestors, by the names that configuration uses."""

    SOCKET = "socket"
    UNIX = "unix"
    KUBERNETES = "kubernetes"


class ServerSettings(Settings):
    """A kubelet or an API server.

    Attributes:
        url: ``https://host:port``; None for what the environment says.
        ca_file: PEM roots for its certificate; None for the pod's own service account.
        token_file: bearer token; None for the pod's own service account.
        server_name: the name in its certificate, where it is not the URL's host.
        insecure_skip_verify: do not verify its certificate; possible to 127.0.0.1 only.
    """

    url: str | None = None
    ca_file: PathField | None = None
    token_file: PathField | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False


class KubernetesSettings(Settings):
    """The kubernetes attestor.

    Attributes:
        kubelet: of this node.
        api: the API server.
        services: whether certificates carry names of Services that select the pod.
        cluster_domain: last labels of the full names of Services.
    """

    kubelet: ServerSettings = ServerSettings()
    api: ServerSettings = ServerSettings()
    services: bool = True
    cluster_domain: str = "cluster.local"


class NodeSettings(Settings):
    """The section ``node:``.

    Attributes:
        attestors: tried in this order.
        matching: whether the first rule that matches decides, or all that match.
        hold: how long a stream waits for a rule that matches its caller.
        recheck: how often a recognised caller is looked at again.
        linger: how long an identity is kept after its last caller left.
        connections: most connections at the same time.
        connections_per_owner: most connections of one pod, or of one user outside pods.
        kubernetes: the kubernetes attestor.
    """

    attestors: Annotated[tuple[AttestorName, ...], Field(min_length=1)]
    matching: Matching = Matching.FIRST
    hold: Duration = timedelta(seconds=30)
    recheck: Duration = timedelta(seconds=30)
    linger: Duration = timedelta(seconds=30)
    connections: Annotated[int, Field(gt=0, le=65536)] = 4096
    connections_per_owner: Annotated[int, Field(gt=0, le=65536)] = 128
    kubernetes: KubernetesSettings = KubernetesSettings()

    @model_validator(mode="after")
    def _more_than_the_socket(self) -> Self:
        if set(self.attestors) <= {AttestorName.SOCKET}:
            raise ValueError(
                "attestors: the node-wide socket needs 'unix' or 'kubernetes': everybody can "
                "open it, so its name alone says nothing"
            )
        if len(set(self.attestors)) != len(self.attestors):
            raise ValueError("attestors: one is listed twice")
        return self


def kubelet_server(settings: ServerSettings, environment: Mapping[str, str]) -> Server:
    """Where the kubelet is.

    Raises:
        ConfigurationError: neither configured nor in the environment, or not allowed.
    """
    url = settings.url
    if url is None:
        address = environment.get(NODE_ADDRESS, "")
        if not address:
            raise ConfigurationError(
                "node.kubernetes.kubelet.url is missing",
                advice=f"write it, or set {NODE_ADDRESS} from the downward API (status.hostIP)",
            )
        url = f"https://{_host(address)}:{_KUBELET_PORT}"
    return _server(settings, url, error=KubeletError, advice=_KUBELET_ADVICE)


def api_server(settings: ServerSettings, environment: Mapping[str, str]) -> Server:
    """Where the API server is.

    Raises:
        ConfigurationError: neither configured nor in the environment, or not allowed.
    """
    url = settings.url
    if url is None:
        host = environment.get("KUBERNETES_SERVICE_HOST", "")
        if not host:
            raise ConfigurationError(
                "node.kubernetes.api.url is missing, and this is no pod",
                advice="write it, or set node.kubernetes.services: false",
            )
        url = f"https://{_host(host)}:{environment.get('KUBERNETES_SERVICE_PORT', '443')}"
    return _server(settings, url, error=KubernetesApiError, advice=_API_ADVICE)


def _server(
    settings: ServerSettings,
    url: str,
    *,
    error: type[KubeletError | KubernetesApiError],
    advice: str,
) -> Server:
    from sds.workload.kubernetes.api import SERVICE_ACCOUNT, Server  # noqa: PLC0415  loads aiohttp

    return Server(
        url=url,
        ca_file=settings.ca_file or SERVICE_ACCOUNT / "ca.crt",
        token_file=settings.token_file or SERVICE_ACCOUNT / "token",
        server_name=settings.server_name,
        insecure_skip_verify=settings.insecure_skip_verify,
        advice=advice,
        error=error,
    )


def _host(address: str) -> str:
    """The address as a URL writes it: IPv6 in brackets."""
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        return address
    return f"[{address}]" if version == 6 else address  # noqa: PLR2004  a protocol's version
