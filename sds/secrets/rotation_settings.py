"""The time limits of rotation.

Invariant: every default suits one node and lifetimes from seconds to days.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationSettings:
    """The time limits of rotation; every default suits one node and lifetimes from seconds to days.

    Attributes:
        attempt: how long an exchange may take before it counts as failed.
        ack_wait: how long a new root waits for the ACKs of subscribers.
        settling: how long a new root is in the bundle before a leaf under it replaces a valid
            one, so that other nodes learn of it too; at most a fifth of the certificate's lifetime.
            Agents, and the issuers that they may ask, ask for roots every 30 seconds at least
            (:mod:`sds.secrets.roots_poll`), and an answer may take that long too.
        retention: how long a root that the authority no longer names may still have leaves; None:
            the longest lifetime that was asked for on this node, or ``lifetime_elsewhere``.
        lifetime_elsewhere: the longest lifetime that other members of the trust domain are known
            to have.
        idle_news: ask the authority for news also while no identity is wanted: who may have one
            may be its news (a later policy).
    """

    attempt: timedelta = timedelta(seconds=30)
    ack_wait: timedelta = timedelta(seconds=5)
    settling: timedelta = timedelta(seconds=90)
    retention: timedelta | None = None
    lifetime_elsewhere: timedelta = timedelta(0)
    idle_news: bool = False
