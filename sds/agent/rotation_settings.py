"""The settings of rotation: how new roots come into use, and how old ones leave.

Invariants: settings are data; a valid value has the domain's own type.
"""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from sds.settings.field_types import Duration, Settings


class RotationSection(Settings):
    """How new roots come into use and old ones leave."""

    root_ack_wait: Duration = Field(
        default=timedelta(seconds=5),
        description="How long a new root waits for every subscriber's ACK before the agent "
        "serves the first certificate under it.",
    )
    root_settling: Duration = Field(
        default=timedelta(seconds=90),
        description="How long a new root is in the bundle before a certificate under it "
        "replaces a valid one, so that other nodes learn of the root: they ask every 30 seconds at "
        "least. At most a fifth of a lifetime, and never until the valid one ends.",
    )
    root_retention: Duration | None = Field(
        default=None,
        description="How long a root that the authority no longer names stays in the bundle: the "
        "longest lifetime that any certificate of the trust domain has, on any node. Without it: "
        "the longest lifetime on this node, and with Istio's authority at least 24 hours, the "
        "lifetime of certificates that sidecars ask for.",
    )
