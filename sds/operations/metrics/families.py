"""Defines the metric families that are counted: the agent's, the authority's, and those of both.

Owns names, help texts, units, labels and buckets, apart from those of values that are read when
Prometheus asks: their collectors beside this module define them. ``docs/reference/metrics.md`` is
generated from all of them. Invariants: names never change their meaning; ``reason`` labels are rows
of :data:`sds.reasons.REASONS` or of the authority's answers, and at most :data:`MAX_REASONS`
unknown ones a family; every known reason is exported from the start, at 0, so that the first event
is an increase; an alert about a state rests on a gauge that keeps its value for as long as the
state lasts.
"""

from __future__ import annotations

import math
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

import sds
from sds.operations.metrics.ahead import AheadCollector
from sds.operations.metrics.collateral import CollateralCollector
from sds.operations.metrics.faults import FaultsCollector
from sds.operations.metrics.node import NodeCollector
from sds.operations.metrics.owners import OwnersCollector
from sds.operations.metrics.port import PortCollector
from sds.reasons.attestation import ATTESTATION
from sds.reasons.authority import AUTHORITY
from sds.reasons.policy import POLICY
from sds.secrets.hardening import can_be_swapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry


# A second series for every counter, which no rule and no panel uses.
disable_created_metrics()  # type: ignore[no-untyped-call]

MAX_REASONS: Final = 64
OTHER: Final = "other"
_STATUS: Final = Path("/proc/self/status")
ISSUED: Final = "issued"
ACCEPTED: Final = "accepted"
UNAVAILABLE: Final = tuple(reason for reason in ATTESTATION if reason.endswith("_unavailable"))
"""Why our own evidence cannot be collected."""
_FAST: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SLOW: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Reasons:
    """Keeps a label bounded: known values, the first :data:`MAX_REASONS` others, then ``other``."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = frozenset(known)
        self._seen: set[str] = set()

    def label(self, value: str) -> str:
        """Return the value itself, or ``other`` if there are too many already."""
        if value in self._known or value in self._seen:
            return value
        if len(self._seen) >= MAX_REASONS:
            return OTHER
        self._seen.add(value)
        return value


def start_at_zero(counter: Counter, values: Iterable[str], *labels: str) -> None:
    """Export the counter from the start for each value of its last label."""
    for value in values:
        counter.labels(*labels, value)


def memory_locked(status: str | None = None, swaps: Callable[[], bool] = can_be_swapped) -> float:
    """Return 1 if most of this process's memory is locked, or there is no swap for it; else 0.

    NaN if it cannot be asked now, for lack of descriptors, say: a scrape gives everything else.

    Args:
        status: the text of ``/proc/PID/status`` (proc(5)); None for this process's own.
        swaps: says whether memory that is not locked could be swapped.
    """
    try:
        text = (
            status if status is not None else _STATUS.read_text(encoding="utf-8", errors="replace")
        )
    except OSError:
        return math.nan
    sizes = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in text.splitlines())
        if name in {"VmLck", "VmSize"}
    }
    locked = 2 * sizes.get("VmLck", 0) > sizes.get("VmSize", 0)
    return 1.0 if locked or not swaps() else 0.0


class AuthorityUp:
    """Tells whether the authority answered; unknown again once nobody would notice that it does."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register the family; the answer is unknown."""
        self._up = math.nan
        self.is_asked: Callable[[], bool] = lambda: True
        """Says whether the authority is going to be asked again."""
        gauge = Gauge(
            "sds_authority_up",
            "1 if the authority answered when it was last asked, 0 if no address answered; NaN "
            "before it was asked, and once nothing asks again.",
            registry=registry,
        )
        gauge.set_function(self._value)

    def set(self, up: float) -> None:
        """Note 1 for an answer, and 0 if no address answered."""
        self._up = up

    def _value(self) -> float:
        return self._up if self._up or self.is_asked() else math.nan


class ProcessFamilies:
    """The families that every long-running command exports, in the process's own ``registry``."""

    def __init__(self, registry: CollectorRegistry, *, component: str) -> None:
        """Register every family; ``component`` is ``agent`` or ``ca``."""
        ProcessCollector(registry=registry)
        FaultsCollector(registry)
        self.collateral = CollateralCollector(registry)
        build = Gauge(
            "sds_build_info",
            "Always 1: version of attested-sds, of Python, and the component.",
            ["component", "version", "python"],
            registry=registry,
        )
        build.labels(component, sds.__version__, platform.python_version()).set(1)
        self.ready = Gauge(
            "sds_ready",
            "1 while the process is ready, as /readyz says, else 0.",
            registry=registry,
        )
        self.policy_epoch = Gauge(
            "sds_policy_epoch",
            "Epoch of the policy in force; 0 while none is.",
            registry=registry,
        )
        self.policy_loaded = Gauge(
            "sds_policy_loaded_timestamp_seconds",
            "When the policy in force came into force; 0 while none is.",
            registry=registry,
        )
        self.policy_not_after = Gauge(
            "sds_policy_not_after_timestamp_seconds",
            "When the policy that was last in force expires; 0 before the first.",
            registry=registry,
        )
        self.policy_in_force = Gauge(
            "sds_policy_in_force",
            "1 while a policy is in force, 0 while none is; NaN if none is configured.",
            registry=registry,
        )
        self.policy_in_force.set(math.nan)
        self.policy_problem = Gauge(
            "sds_policy_refused",
            "1 while the policy document that was offered last is refused, else 0.",
            registry=registry,
        )
        self.policy_refusals = Counter(
            "sds_policy_refusals",
            "Policy documents that were refused, by reason.",
            ["reason"],
            registry=registry,
        )
        start_at_zero(self.policy_refusals, POLICY)
        self.verdicts = Counter(
            "sds_attestation_verdicts",
            "Evidence that was verified, by kind and verdict ('accepted' or the reason).",
            ["kind", "verdict"],
            registry=registry,
        )
        self.evidence_latency = Histogram(
            "sds_evidence_latency_seconds",
            "How long collecting our own evidence took.",
            buckets=_SLOW,
            registry=registry,
        )
        self.evidence_failures = Counter(
            "sds_evidence_failures",
            "Times that our own evidence could not be collected, by reason.",
            ["reason"],
            registry=registry,
        )
        start_at_zero(self.evidence_failures, UNAVAILABLE)
        self.memory_locked = Gauge(
            "sds_memory_locked",
            "1 while the process's memory cannot be swapped, because it is locked or there is no "
            "swap for it; 0 if it can be (NaN: unknown).",
            registry=registry,
        )
        self.memory_locked.set_function(memory_locked)


class AgentFamilies:
    """The families that the agent exports in addition to :class:`ProcessFamilies`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.issue_latency = Histogram(
            "sds_authority_latency_seconds",
            "How long one exchange with the authority took, from evidence to answer.",
            buckets=_SLOW,
            registry=registry,
        )
        self.authority_up = AuthorityUp(registry)
        self.requests = Counter(
            "sds_certificates_requested",
            "Certificates that were asked for, by outcome ('issued' or the reason).",
            ["outcome"],
            registry=registry,
        )
        start_at_zero(self.requests, (ISSUED, *AUTHORITY))
        self.renewals = Counter(
            "sds_renewals",
            "SVIDs that were verified and taken into service.",
            registry=registry,
        )
        self.renewal_failures = Counter(
            "sds_renewal_failures",
            "Attempts to get an SVID that failed, by reason.",
            ["reason"],
            registry=registry,
        )
        start_at_zero(self.renewal_failures, AUTHORITY)
        self.expirations = Counter(
            "sds_svid_withdrawals",
            "SVIDs that were withdrawn: they expired unrenewed, or are no longer wanted.",
            registry=registry,
        )
        self.push_latency = Histogram(
            "sds_push_latency_seconds",
            "From a change in the store to its write to a stream that held an older version.",
            buckets=_FAST,
            registry=registry,
        )
        self.ack_latency = Histogram(
            "sds_ack_latency_seconds",
            "From the write of a resource to the subscriber's ACK.",
            buckets=_FAST,
            registry=registry,
        )
        self.responses = Counter(
            "sds_resources_sent",
            "SVIDs and bundles that were written to streams; one resource may have several.",
            registry=registry,
        )
        self.acks = Counter(
            "sds_acks", "SVIDs and bundles that subscribers ACKed.", registry=registry
        )
        self.nacks = Counter(
            "sds_nacks",
            "Responses that subscribers refused, by what their words say.",
            ["reason"],
            registry=registry,
        )
        self.refused_subscriptions = Gauge(
            "sds_subscriptions_refused",
            "Names whose current version a subscriber refused; it goes on with the old one.",
            registry=registry,
        )
        self.lost_sockets = Gauge(
            "sds_sockets_lost",
            "Sockets of this agent that somebody removed or replaced.",
            registry=registry,
        )
        self.streams = Gauge(
            "sds_streams", "Open streams of subscribers, by call.", ["method"], registry=registry
        )
        self.events = Counter(
            "sds_xds_events",
            "What happened on streams, by event: requests, responses, ACKs, absent names, limits "
            "and others.",
            ["event", "method"],
            registry=registry,
        )
        self.workloads = Gauge(
            "sds_connected_workloads",
            "Workloads that have at least one stream open.",
            registry=registry,
        )
        self.ahead = AheadCollector(registry)
        self.owners = OwnersCollector(registry)
        self.node = NodeCollector(registry)
        self.federation_refreshed = Gauge(
            "sds_federation_refreshed_timestamp_seconds",
            "When the bundle of a foreign trust domain was last fetched and verified; 0 before the "
            "first time.",
            ["trust_domain"],
            registry=registry,
        )
        self.federation_due = Gauge(
            "sds_federation_due_timestamp_seconds",
            "When that bundle is due to be fetched again, as `refresh` or its publisher says; 0 "
            "before the first time.",
            ["trust_domain"],
            registry=registry,
        )
        self.federation_failures = Counter(
            "sds_federation_failures",
            "Fetches of a foreign trust domain's bundle that failed, by reason.",
            ["trust_domain", "reason"],
            registry=registry,
        )


UNREAD: Final = ("admission_form", "internal", "unanswered")
"""Decisions of ``sds admission`` about questions that it could not read: they name no command."""
UNADMITTED: Final = (
    "admission_not_listed",
    "admission_form",
    "cri_not_described",
    "cri_unavailable",
    "cri_unknown_shape",
    "internal",
)
"""Decisions about questions that it read."""


class AdmissionFamilies:
    """The families that ``sds admission`` exports in addition to :class:`ProcessFamilies`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "sds_admission_decisions",
            "Sandboxes, containers ('create') and processes in them ('exec') that the runtime was "
            "to start, by decision ('admitted' or the reason).",
            ["command", "decision"],
            registry=registry,
        )
        for command in ("create", "exec"):
            start_at_zero(self.decisions, ("admitted", *UNADMITTED), command)
        start_at_zero(self.decisions, UNREAD, "")


class AuthorityFamilies:
    """The families that the authority exports in addition to :class:`ProcessFamilies`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.issue_latency = Histogram(
            "sds_ca_issue_latency_seconds",
            "How long a message of an agent (a Hello or a request) took at the authority, from "
            "when it was read to the answer.",
            buckets=_FAST,
            registry=registry,
        )
        self.certificates = Counter(
            "sds_ca_certificates",
            "Certificates that were asked for, by outcome ('issued' or the reason). A request that "
            "is refused as a whole counts once.",
            ["outcome"],
            registry=registry,
        )
        start_at_zero(self.certificates, (ISSUED, *AUTHORITY))
        self.not_after = Gauge(
            "sds_ca_not_after_timestamp_seconds",
            "When the issuing certificate expires; 0 before there is one.",
            registry=registry,
        )
        self.remaining = Gauge(
            "sds_ca_remaining_ratio",
            "Part of the issuing certificate's life that is left, from its receipt: 1 is new, 0 "
            "expired (NaN before there is one).",
            registry=registry,
        )
        self.remaining.set(math.nan)
        self.port = PortCollector(registry)
