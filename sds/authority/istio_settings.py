"""The ``authority:`` section of an agent that asks Istio's certificate authority.

Owns that section's form alone: a configuration that names another authority loads no client of
Istio's (:mod:`sds.authority.istio`).
"""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field

from sds.settings.fields import Duration, PathField, Settings


class IstioSettings(Settings):
    """How to reach an Istio certificate authority, and as whom (``authority:`` of the agent)."""

    kind: Literal["istio"] = "istio"
    addresses: tuple[str, ...] = Field(
        min_length=1,
        description="`host:port` of istiod's certificate port, tried in turn while one does not "
        "answer.",
        examples=[["istiod.istio-system.svc:15012"]],
    )
    root: PathField = Field(
        description="PEM file with the roots that istiod's TLS certificate must verify under; "
        "followed when it changes."
    )
    token: PathField = Field(
        description="File with the bearer token: a projected service-account token. It is read "
        "again for every exchange."
    )
    server_name: str = Field(
        default="istiod.istio-system.svc",
        description="The DNS name that istiod's certificate must carry.",
    )
    cluster_id: str = Field(
        default="Kubernetes",
        description="The `clusterid` metadata: the name under which istiod knows this cluster.",
    )
    audience: str = Field(
        default="istio-ca",
        description="The audience that istiod wants; used only to explain a refusal.",
    )
    impersonate: bool = Field(
        default=False,
        description="Ask for each certificate as `ImpersonatedIdentity`: the token belongs to a "
        "node agent that stands in istiod's `CA_TRUSTED_NODE_ACCOUNTS`.",
    )
    timeout: Duration = Field(
        default=timedelta(seconds=10), description="The longest that one call may take."
    )
