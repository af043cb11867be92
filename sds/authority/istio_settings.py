"""The ``authority:`` section of an agent that asks Istio's certificate authority.

Owns only that section's form, so that a configuration with another authority does not load Istio's
client (:mod:`sds.authority.istio`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field

from sds.settings.field_types import Duration, PathField, ServerName, Settings


class IstioSettings(Settings):
    """How to reach Istio's certificate authority, and as whom."""

    kind: Literal["istio"] = "istio"
    addresses: tuple[str, ...] = Field(
        min_length=1,
        description="`host:port` of istiod's certificate port. The agent tries them in turn "
        "until one answers.",
        examples=[["istiod.istio-system.svc:15012"]],
    )
    root: PathField = Field(
        description="PEM file with the roots of istiod's TLS certificate. The agent notices "
        "when it changes."
    )
    token: PathField = Field(
        description="File with the bearer token: a projected service-account token. The agent "
        "reads it again for every exchange."
    )
    server_name: ServerName = Field(
        default="istiod.istio-system.svc",
        description="The DNS name in istiod's TLS certificate.",
    )
    cluster_id: str = Field(
        default="Kubernetes",
        pattern=r"^[!-~]+$",
        description="The name under which istiod knows this cluster (metadata `clusterid`).",
    )
    audience: str = Field(
        default="istio-ca",
        pattern=r"^[!-~]+$",
        description="The audience that istiod expects. Used only to explain a refusal.",
    )
    impersonate: bool = Field(
        default=False,
        description="Ask for each certificate as `ImpersonatedIdentity`. The token must belong "
        "to a node agent that istiod's `CA_TRUSTED_NODE_ACCOUNTS` lists.",
    )
    timeout: Duration = Field(default=timedelta(seconds=10), description="Time limit for one call.")
