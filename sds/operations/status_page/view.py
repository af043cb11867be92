"""What the page shows, as plain values.

Invariant: no value here is secret, and none refers to a living object: a view is a photograph.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime, timedelta


class Health(enum.StrEnum):
    """How something is; the page has a word, a sign and a colour for each."""

    GOOD = "good"
    LATE = "late"
    BAD = "bad"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityView:
    """One identity.

    Attributes:
        spiffe_id: its name.
        dns_names: its DNS names.
        workloads: names of the workloads that may have it.
        serial: of the SVID in service, in hex; empty while there is none.
        not_after: when that expires.
        received_at: when it came.
        next_attempt: when it is renewed, where that is known.
        error: the last failure in words; empty where the last attempt succeeded.
    """

    spiffe_id: str
    dns_names: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    serial: str = ""
    not_after: datetime | None = None
    received_at: datetime | None = None
    next_attempt: datetime | None = None
    error: str = ""

    def remaining(self, now: datetime) -> float:
        """The part of its life that is left: 1 new, 0 expired or none."""
        if self.not_after is None or self.received_at is None:
            return 0.0
        span = (self.not_after - self.received_at).total_seconds()
        left = (self.not_after - now).total_seconds()
        return max(0.0, min(1.0, left / span)) if span > 0 else 0.0

    def health(self, now: datetime) -> Health:
        """Good, late (a healthy agent renews at half of the life), bad, or waiting."""
        if self.not_after is None:
            return Health.BAD if self.error else Health.WAITING
        left = self.remaining(now)
        if left < 0.15:  # noqa: PLR2004  as the alert SdsSvidExpiring
            return Health.BAD
        return Health.LATE if left < 0.35 else Health.GOOD  # noqa: PLR2004  SdsRenewalLate


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionView:
    """One name that a client subscribes to.

    Attributes:
        name: as the client asked for it.
        version: the one last sent; empty where nothing was.
        state: ``ACKed``, ``sent``, ``NACKed`` or ``waiting``.
        error: the client's words where it refused.
    """

    name: str
    version: str = ""
    state: str = "waiting"
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientView:
    """One stream's client: node id, workload, call, and its subscriptions."""

    node: str
    workload: str
    method: str = ""
    subscriptions: tuple[SubscriptionView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """The policy in force: epoch, digest in hex, when it came and when it ends."""

    epoch: int
    digest: str
    not_after: datetime | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorView:
    """One recent error."""

    at: datetime
    about: str
    reason: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """The whole page at one moment."""

    now: datetime
    version: str
    trust_domain: str
    ready: bool
    uptime: timedelta
    authority: str
    notices: tuple[str, ...] = ()
    identities: tuple[IdentityView, ...] = ()
    clients: tuple[ClientView, ...] = ()
    bundles: tuple[tuple[str, int], ...] = ()
    policy: PolicyView | None = None
    errors: tuple[ErrorView, ...] = ()
