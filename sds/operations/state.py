"""Models what an agent does at one moment, for ``sds status`` and the status page.

Invariant: all values are plain; none is secret, and none refers to a living object.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from sds.operations.readiness import Readiness
    from sds.secrets.hardening import MemoryProtection
    from sds.transport.usage import Usage

RENEWAL_LATE: Final = 0.35
"""The remaining part of a life below which a renewal is late, as in the alert SdsRenewalLate: a
healthy agent renews at 0.5 to 0.6."""
EXPIRING: Final = 0.15
"""The remaining part of a life below which new connections are about to fail (SdsSvidExpiring)."""


class IdentityHealth(enum.StrEnum):
    """The health of an identity; the page has a word, a sign and a colour for each."""

    GOOD = "good"
    LATE = "late"
    BAD = "bad"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityState:
    """One identity.

    Attributes:
        spiffe_id: its SPIFFE ID.
        dns_names: its DNS names.
        workloads: names of the workloads that may have it.
        condition: ``valid``, ``waiting`` or ``refused``.
        serial: the serial number of the SVID in service, in hex; empty without an SVID.
        version: the version of that SVID in SDS responses; empty without an SVID.
        not_after: when that SVID expires.
        received_at: when that SVID was received.
        renew_at: when its renewal is due.
        rotations: how many SVIDs were taken into service.
        failed_attempts: how many attempts failed since the last success, or since something
            changed that may cure the failure.
        reason: why the last attempt failed, as a stable label; empty if it succeeded.
        message: the same in words.
        wanted: whether somebody may have it now. Nothing renews the others, so they are never late:
            they are kept for callers that come back, or were minted ahead.
    """

    spiffe_id: str
    dns_names: tuple[str, ...] = ()
    workloads: tuple[str, ...] = ()
    condition: str = "waiting"
    serial: str = ""
    version: str = ""
    not_after: datetime | None = None
    received_at: datetime | None = None
    renew_at: datetime | None = None
    rotations: int = 0
    failed_attempts: int = 0
    reason: str = ""
    message: str = ""
    wanted: bool = True

    def remaining(self, now: datetime) -> float:
        """Return the part of its life that is left: 1 is new, 0 is expired or none."""
        if self.not_after is None or self.received_at is None:
            return 0.0
        span = (self.not_after - self.received_at).total_seconds()
        left = (self.not_after - now).total_seconds()
        return max(0.0, min(1.0, left / span)) if span > 0 else 0.0

    def health(self, now: datetime) -> IdentityHealth:
        """Judge by the remaining life; without an SVID, bad after a failure and waiting before."""
        if self.not_after is None:
            bad = self.reason and self.wanted
            return IdentityHealth.BAD if bad else IdentityHealth.WAITING
        if not self.wanted:
            return IdentityHealth.GOOD
        left = self.remaining(now)
        if left < EXPIRING:
            return IdentityHealth.BAD
        return IdentityHealth.LATE if left < RENEWAL_LATE else IdentityHealth.GOOD


@dataclass(frozen=True, slots=True, kw_only=True)
class SubscriptionState:
    """One name that a client subscribes to.

    Attributes:
        name: as the client asked for it.
        version: the version that was last sent; empty if none was.
        state: ``ACKed``, ``sent``, ``NACKed`` or ``waiting``.
        error: the client's text, if it refused the version.
    """

    name: str
    version: str = ""
    state: str = "waiting"
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientState:
    """One open stream: its Envoy's node id, workload, call, and subscriptions."""

    node: str
    workload: str
    method: str = ""
    subscriptions: tuple[SubscriptionState, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadState:
    """A workload with its own socket, or one that is connected to the node-wide socket.

    Attributes:
        name: the socket's name, or the caller's, such as ``namespace/pod``.
        socket: the path of its socket.
        spiffe_ids: the SPIFFE IDs that it may have.
        streams: its open streams.
    """

    name: str
    socket: str
    spiffe_ids: tuple[str, ...]
    streams: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleState:
    """The roots of a trust domain: their SHA-256 in hex, and their version in SDS responses."""

    trust_domain: str
    roots: tuple[str, ...]
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """The signed policy.

    Attributes:
        epoch: the epoch of the policy that was last in force; 0 before the first.
        digest: the SHA-256 of that policy in hex; empty before the first.
        not_after: when the policy in force expires; None while none is in force.
        problem: why the last offered document was refused; empty if it was accepted.
    """

    epoch: int = 0
    digest: str = ""
    not_after: datetime | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PastError:
    """One past error: its time, subject, reason and text."""

    at: datetime
    about: str
    reason: str
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentState:
    """The whole agent.

    Attributes:
        warnings: facts that must not be overlooked: simulated evidence, memory that is not
            locked.
        authority: the address in use, or the configured addresses.
        clients: the open streams.
        unlisted: how many further streams are open, beyond the bound of ``clients``.
        memory: the protections of the memory with keys, if they were tried.
        owners: the owners of connections that exceeded their budget, and those that use the most.
        strangers: what the owners that no rule recognises use together.
    """

    now: datetime
    started: datetime
    version: str
    pid: int
    trust_domain: str
    readiness: Readiness
    draining: bool
    authority: str
    warnings: tuple[str, ...] = ()
    identities: tuple[IdentityState, ...] = ()
    workloads: tuple[WorkloadState, ...] = ()
    clients: tuple[ClientState, ...] = ()
    unlisted: int = 0
    bundles: tuple[BundleState, ...] = ()
    policy: PolicyState | None = None
    errors: tuple[PastError, ...] = ()
    memory: MemoryProtection | None = None
    owners: tuple[Usage, ...] = ()
    strangers: Usage | None = None

    @property
    def uptime(self) -> timedelta:
        """Return how long the agent has run."""
        return self.now - self.started
