"""Holds the instruments of one process: its registry, and a measuring wrapper for every port.

Owns the composition of :mod:`sds.operations.metrics` for the agent and for the authority.
Invariant: a wrapper keeps every capability of the port that it wraps (an authority that can be
asked for its roots can still be asked).
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client import CollectorRegistry

from sds.errors import AuthorityUnavailableError, PolicyError
from sds.operations.metrics.families import (
    ISSUED,
    AdmissionFamilies,
    AgentFamilies,
    AuthorityFamilies,
    ProcessFamilies,
    Reasons,
    start_at_zero,
)
from sds.operations.metrics.ports import (
    MeteredAttester,
    MeteredAuthority,
    MeteredRootsAuthority,
    MeteredVerifier,
    reason_of,
)
from sds.operations.metrics.serving import CountingObserver
from sds.operations.metrics.store import MeteredStore, StoreCollector
from sds.operations.readiness import admission_readiness
from sds.operations.state import PastError
from sds.reasons.authority import AUTHORITY
from sds.reasons.policy import POLICY
from sds.reasons.serving import SERVING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

    from sds.attestation.build import Verification
    from sds.attestation.evidence import Attester, Verifier
    from sds.authority.port import Authority
    from sds.clock import Clock
    from sds.errors import SdsError
    from sds.identity import TrustDomain
    from sds.operations.metrics.node import NodeConnections
    from sds.operations.metrics.port import Port
    from sds.operations.readiness import Readiness
    from sds.policy.holder import PolicyHolder
    from sds.policy.trust import AdmittedPolicy
    from sds.secrets.identity_status import IdentityStatus
    from sds.serving.service import SecretService
    from sds.transport.budget import Budgets
    from sds.workload.minting_ahead import MintingAhead

_KEPT_ERRORS: Final = 50
BUNDLE_REASONS: Final = tuple(reason for reason in SERVING if reason.startswith("bundle"))
"""Why the bundle of a foreign trust domain cannot be fetched."""


class AgentParts(Protocol):
    """Answers the questions that metrics ask of an agent at every scrape."""

    @property
    def service(self) -> SecretService:
        """Return what serves all sockets of the agent."""
        ...

    @property
    def policy(self) -> PolicyHolder | None:
        """Return the signed policy; None if none is configured."""
        ...

    @property
    def ahead(self) -> MintingAhead | None:
        """Return the part that mints before callers ask; None if nothing does."""
        ...

    @property
    def budgets(self) -> Budgets | None:
        """Return the budgets of the owners of connections; None if nothing counts them."""
        ...

    @property
    def node(self) -> NodeConnections | None:
        """Return the counts of the node-wide socket; None if there is none."""
        ...

    def readiness(self) -> Readiness:
        """Say whether the agent is ready."""
        ...

    def identities(self) -> Sequence[IdentityStatus]:
        """Return every identity that is kept, also those that nobody wants now."""
        ...

    def asks_authority(self) -> bool:
        """Say whether the authority is going to be asked again, whatever happens."""
        ...

    def refused_subscriptions(self) -> int:
        """Return the names whose current version a subscriber refused."""
        ...

    @property
    def lost_sockets(self) -> Callable[[], Sequence[str]]:
        """Return the function that lists the paths of our sockets that are no longer ours."""
        ...


class Instruments:
    """The instruments that agent and authority have in common.

    Args:
        component: ``agent`` or ``ca``.
        clock: time.
    """

    def __init__(self, component: str, *, clock: Clock) -> None:
        self.registry = CollectorRegistry()
        self.clock = clock
        self.process = ProcessFamilies(self.registry, component=component)
        self.errors: deque[PastError] = deque(maxlen=_KEPT_ERRORS)
        self._policy_reasons = Reasons(POLICY)

    def attester(self, inner: Attester) -> Attester:
        """Wrap the attester to time it."""
        return MeteredAttester(inner, self.process)

    def verifier(self, inner: Verifier) -> Verifier:
        """Wrap the verifier to count its verdicts."""
        return MeteredVerifier(inner, self.process)

    def watch_readiness(self, readiness: Callable[[], Readiness]) -> None:
        """Export whether the process is ready; this function is asked at every scrape."""
        self.process.ready.set_function(lambda: float(readiness().ready))

    def watch_collateral(self, *sources: Verification) -> None:
        """Export the state of the collateral; these sources are asked at every scrape."""
        self.process.collateral.sources = sources

    def watch_policy(self, holder: PolicyHolder) -> None:
        """Export, at every scrape, whether a policy is in force and whether one was refused."""
        self.process.policy_in_force.set_function(lambda: float(not holder.absence))
        self.process.policy_problem.set_function(lambda: float(holder.last_error is not None))

    def remember(self, error: SdsError, *, about: str) -> None:
        """Keep an error for the status page; an equal error replaces the earlier one."""
        new = PastError(
            at=self.clock.now().wall, about=about, reason=reason_of(error), words=str(error)
        )
        for old in list(self.errors):
            if (old.about, old.reason, old.words) == (new.about, new.reason, new.words):
                self.errors.remove(old)
        self.errors.append(new)

    # --- a sds.policy.holder.PolicyWatcher ------------------------------------------------------

    def taken(self, policy: AdmittedPolicy, *, now: datetime) -> None:
        self.process.policy_epoch.set(policy.epoch.number)
        self.process.policy_loaded.set(now.timestamp())
        self.process.policy_not_after.set(policy.not_after.timestamp())

    def refused(self, error: PolicyError) -> None:
        self.process.policy_refusals.labels(self._policy_reasons.label(error.reason)).inc()
        self.remember(error, about="policy")

    def ended(self) -> None:
        self.process.policy_epoch.set(0)
        self.process.policy_loaded.set(0)


class AdmissionInstruments(Instruments):
    """The instruments of ``sds admission``, which count decisions."""

    def __init__(self, *, clock: Clock) -> None:
        super().__init__("admission", clock=clock)
        self._decisions = AdmissionFamilies(self.registry).decisions
        self._reasons = Reasons()

    def decided(self, command: str, decision: str) -> None:
        """Count one decision of :class:`sds.admission.server.QuestionServer`."""
        self._decisions.labels(command, self._reasons.label(decision)).inc()

    def watch_policy(self, holder: PolicyHolder) -> None:
        """Export the policy, also as readiness: without one only pods under `always` start."""
        super().watch_policy(holder)
        self.watch_readiness(lambda: admission_readiness(no_policy=holder.absence))


class AgentInstruments(Instruments):
    """The agent's instruments: they meter the store, time the authority and count streams.

    Attributes:
        store: the store to use.
        serving: the observer for :class:`sds.serving.service.SecretService`.
    """

    def __init__(self, *, clock: Clock) -> None:
        super().__init__("agent", clock=clock)
        self.families = AgentFamilies(self.registry)
        self.store = MeteredStore(self.families)
        self.serving = CountingObserver(self.families)
        self._reasons = Reasons(AUTHORITY)
        self._bundle_reasons = Reasons(BUNDLE_REASONS)
        self._stored = StoreCollector(self.store, clock, self.registry)

    def authority(self, inner: Authority) -> Authority:
        """Wrap the authority to time and count its exchanges."""
        kind = MeteredRootsAuthority if hasattr(inner, "roots") else MeteredAuthority
        return kind(inner, self.families)

    def watch_agent(self, parts: AgentParts) -> None:
        """Export, at every scrape, identities, subscriptions and lost sockets of these parts."""
        self.watch_readiness(parts.readiness)
        if parts.policy is not None:
            self.watch_policy(parts.policy)
        self._stored.wanted = parts.identities
        self.families.authority_up.is_asked = parts.asks_authority
        self.families.ahead.source = parts.ahead
        self.families.owners.budgets = parts.budgets
        self.families.node.source = parts.node
        self.families.workloads.set_function(lambda: len(set(connected_workloads(parts.service))))
        self.families.refused_subscriptions.set_function(parts.refused_subscriptions)
        self.families.lost_sockets.set_function(lambda: len(parts.lost_sockets()))

    def watch_federation(self, trust_domains: Iterable[TrustDomain]) -> None:
        """Export these foreign trust domains from the start."""
        for trust_domain in trust_domains:
            self.families.federation_refreshed.labels(trust_domain)
            self.families.federation_due.labels(trust_domain)
            start_at_zero(self.families.federation_failures, BUNDLE_REASONS, trust_domain)

    # --- a sds.secrets.rotation.Observer --------------------------------------------------------

    def renewal_failed(self, error: SdsError) -> None:
        self.families.renewal_failures.labels(self._reasons.label(reason_of(error))).inc()
        if isinstance(error, AuthorityUnavailableError):
            self.families.authority_up.set(0)
        self.remember(error, about="renewal")

    # --- a sds.federation.refresh.FederationObserver --------------------------------------------

    def refreshed(self, trust_domain: TrustDomain, *, at: datetime, due: datetime) -> None:
        self.families.federation_refreshed.labels(trust_domain).set(at.timestamp())
        self.families.federation_due.labels(trust_domain).set(due.timestamp())

    def failed(self, trust_domain: TrustDomain, error: SdsError) -> None:
        reason = self._bundle_reasons.label(error.reason)
        for family in (self.families.federation_refreshed, self.families.federation_due):
            family.labels(trust_domain)  # 0 until the first success
        self.families.federation_failures.labels(trust_domain, reason).inc()
        self.remember(error, about=f"bundle of {trust_domain}")

    def forgotten(self, trust_domain: TrustDomain) -> None:
        # Else it counts as stale for ever.
        self.families.federation_refreshed.remove(trust_domain)
        self.families.federation_due.remove(trust_domain)
        failures = self.families.federation_failures
        for sample in [one for family in failures.collect() for one in family.samples]:
            if sample.labels["trust_domain"] == trust_domain:
                failures.remove(trust_domain, sample.labels["reason"])


class AuthorityInstruments(Instruments):
    """The certificate authority's instruments."""

    def __init__(self, *, clock: Clock) -> None:
        super().__init__("ca", clock=clock)
        self.families = AuthorityFamilies(self.registry)
        self._outcomes = Reasons((ISSUED, *AUTHORITY))

    def decided(self, reason: str) -> None:
        """Count one decision: ``issued``, or the reason of a refusal."""
        self.families.certificates.labels(self._outcomes.label(reason)).inc()

    def answered(self, seconds: float) -> None:
        """Note how long a request took, in seconds."""
        self.families.issue_latency.observe(seconds)

    def signs_until(
        self, not_after: Callable[[], datetime | None], remaining: Callable[[], float | None]
    ) -> None:
        """Export the end of the issuing certificate; these functions are asked at every scrape."""

        def seconds() -> float:
            end = not_after()
            return 0.0 if end is None else end.timestamp()

        def part() -> float:
            left = remaining()
            return math.nan if left is None else left

        self.families.not_after.set_function(seconds)
        self.families.remaining.set_function(part)

    def watch_port(self, port: Port) -> None:
        """Export the connections of the authority's port, which is asked at every scrape."""
        self.families.port.source = port


def connected_workloads(service: SecretService) -> Iterator[str]:
    """Return the names of workloads with open streams, with repeats."""
    for session in service.sessions():
        if session.streams:
            yield session.caller.name
