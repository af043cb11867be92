"""The instruments of one process: its registry, and every port wrapped by what measures it.

Owns the composition of :mod:`sds.operations.metrics` for the agent and for the authority.
Invariant: wrapping keeps every capability of what is wrapped (an authority that can be asked for
its roots can still be asked).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry

from sds.operations.metrics.families import (
    AgentFamilies,
    AuthorityFamilies,
    ProcessFamilies,
    Reasons,
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
from sds.operations.state import PastError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from sds.attestation.evidence import Attester, Verifier
    from sds.authority.port import Authority
    from sds.clock import Clock
    from sds.errors import PolicyError, SdsError
    from sds.identity import TrustDomain
    from sds.operations.readiness import Readiness
    from sds.policy.trust import AdmittedPolicy
    from sds.serving.service import SecretService

_KEPT_ERRORS: Final = 50


class Instruments:
    """What agent and authority have in common.

    Args:
        component: ``agent`` or ``ca``.
        clock: time.
    """

    def __init__(self, component: str, *, clock: Clock) -> None:
        self.registry = CollectorRegistry()
        self.clock = clock
        self.process = ProcessFamilies(self.registry, component=component)
        self.errors: deque[PastError] = deque(maxlen=_KEPT_ERRORS)
        self._policy_reasons = Reasons()

    def attester(self, inner: Attester) -> Attester:
        """The attester, timed."""
        return MeteredAttester(inner, self.process)

    def verifier(self, inner: Verifier) -> Verifier:
        """The verifier, its verdicts counted."""
        return MeteredVerifier(inner, self.process)

    def watch_readiness(self, readiness: Callable[[], Readiness]) -> None:
        """Ask this at every scrape whether the process is ready."""
        self.process.ready.set_function(lambda: float(readiness().ready))

    def remember(self, error: SdsError, *, about: str) -> None:
        """Keep an error for the status page; the same one again takes the place of the first."""
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
        self.process.policy_not_after.set(0)


class AgentInstruments(Instruments):
    """The agent's: a store that is metered, an authority that is timed, streams that are counted.

    Attributes:
        store: the store to use.
        serving: the observer for :class:`sds.serving.service.SecretService`.
    """

    def __init__(self, *, clock: Clock, run_id: str | None = None) -> None:
        super().__init__("agent", clock=clock)
        self.families = AgentFamilies(self.registry)
        self.store = MeteredStore(self.families, run_id=run_id)
        self.serving = CountingObserver(self.families)
        self._reasons = Reasons()
        self._bundle_reasons = Reasons()
        StoreCollector(self.store, clock, self.registry)

    def authority(self, inner: Authority) -> Authority:
        """The authority, timed and counted."""
        kind = MeteredRootsAuthority if hasattr(inner, "roots") else MeteredAuthority
        return kind(inner, self.families)

    def count_workloads(self, connected: Callable[[], Iterable[str]]) -> None:
        """Ask this at every scrape for the names of workloads with open streams."""
        self.families.workloads.set_function(lambda: len(set(connected())))

    # --- a sds.secrets.rotation.Observer --------------------------------------------------------

    def renewal_failed(self, error: SdsError) -> None:
        self.families.renewal_failures.labels(self._reasons.label(reason_of(error))).inc()
        self.remember(error, about="renewal")

    # --- a sds.federation.refresh.FederationObserver --------------------------------------------

    def refreshed(self, trust_domain: TrustDomain, *, at: datetime) -> None:
        self.families.federation_refreshed.labels(trust_domain).set(at.timestamp())

    def failed(self, trust_domain: TrustDomain, error: SdsError) -> None:
        reason = self._bundle_reasons.label(error.reason)
        self.families.federation_failures.labels(trust_domain, reason).inc()
        self.remember(error, about=f"bundle of {trust_domain}")


class AuthorityInstruments(Instruments):
    """The certificate authority's."""

    def __init__(self, *, clock: Clock) -> None:
        super().__init__("ca", clock=clock)
        self.families = AuthorityFamilies(self.registry)
        self._outcomes = Reasons()

    def decided(self, reason: str) -> None:
        """One certificate was issued (``issued``) or refused (why)."""
        self.families.certificates.labels(self._outcomes.label(reason)).inc()

    def answered(self, seconds: float) -> None:
        """A request was answered after so long."""
        self.families.issue_latency.observe(seconds)

    def signs_until(self, not_after: Callable[[], datetime | None]) -> None:
        """Ask this at every scrape for the end of the issuing certificate."""

        def seconds() -> float:
            end = not_after()
            return 0.0 if end is None else end.timestamp()

        self.families.not_after.set_function(seconds)


def connected_workloads(service: SecretService) -> Iterator[str]:
    """Names of workloads with open streams, with repeats."""
    for session in service.sessions():
        if session.streams:
            yield session.caller.name
