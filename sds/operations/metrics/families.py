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
from functools import partial
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
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        ProcessCollector(registry=registry)
        FaultsCollector(registry)
        self.collateral = CollateralCollector(registry)
        build = gauge(
            "sds_build_info",
            "Always 1: version of attested-sds, of Python, and the component.",
            ["component", "version", "python"],
        )
        build.labels(component, sds.__version__, platform.python_version()).set(1)
        self.ready = gauge("sds_ready", "1 while the process is ready, as /readyz says, else 0.")
        self.policy_epoch = gauge(
            "sds_policy_epoch", "Epoch of the policy in force; 0 while none is."
        )
        self.policy_loaded = gauge(
            "sds_policy_loaded_timestamp_seconds",
            "When the policy in force came into force; 0 while none is.",
        )
        self.policy_not_after = gauge(
            "sds_policy_not_after_timestamp_seconds",
            "When the policy that was last in force expires; 0 before the first.",
        )
        self.policy_in_force = gauge(
            "sds_policy_in_force",
            "1 while a policy is in force, 0 while none is; NaN if none is configured.",
        )
        self.policy_in_force.set(math.nan)
        self.policy_problem = gauge(
            "sds_policy_refused",
            "1 while the policy document that was offered last is refused, else 0.",
        )
        self.policy_refusals = counter(
            "sds_policy_refusals", "Policy documents that were refused, by reason.", ["reason"]
        )
        start_at_zero(self.policy_refusals, POLICY)
        self.verdicts = counter(
            "sds_attestation_verdicts",
            "Evidence that was verified, by kind and verdict ('accepted' or the reason).",
            ["kind", "verdict"],
        )
        self.evidence_latency = histogram(
            "sds_evidence_latency_seconds",
            "How long collecting our own evidence took.",
            buckets=_SLOW,
        )
        self.evidence_failures = counter(
            "sds_evidence_failures",
            "Times that our own evidence could not be collected, by reason.",
            ["reason"],
        )
        start_at_zero(self.evidence_failures, UNAVAILABLE)
        self.memory_locked = gauge(
            "sds_memory_locked",
            "1 while the process's memory cannot be swapped, because it is locked or there is no "
            "swap for it; 0 if it can be (NaN: unknown).",
        )
        self.memory_locked.set_function(memory_locked)


class AgentFamilies:
    """The families that the agent exports in addition to :class:`ProcessFamilies`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.issue_latency = histogram(
            "sds_authority_latency_seconds",
            "How long one exchange with the authority took, from evidence to answer.",
            buckets=_SLOW,
        )
        self.authority_up = AuthorityUp(registry)
        self.requests = counter(
            "sds_certificates_requested",
            "Certificates that were asked for, by outcome ('issued' or the reason).",
            ["outcome"],
        )
        start_at_zero(self.requests, (ISSUED, *AUTHORITY))
        self.renewals = counter("sds_renewals", "SVIDs that were verified and taken into service.")
        self.renewal_failures = counter(
            "sds_renewal_failures", "Attempts to get an SVID that failed, by reason.", ["reason"]
        )
        start_at_zero(self.renewal_failures, AUTHORITY)
        self.expirations = counter(
            "sds_svid_withdrawals",
            "SVIDs that were withdrawn: they expired unrenewed, or are no longer wanted.",
        )
        self.push_latency = histogram(
            "sds_push_latency_seconds",
            "From a change in the store to its write to a stream that held an older version.",
            buckets=_FAST,
        )
        self.ack_latency = histogram(
            "sds_ack_latency_seconds",
            "From the write of a resource to the subscriber's ACK.",
            buckets=_FAST,
        )
        self.responses = counter(
            "sds_resources_sent",
            "SVIDs and bundles that were written to streams; one resource may have several.",
        )
        self.acks = counter("sds_acks", "SVIDs and bundles that subscribers ACKed.")
        self.nacks = counter(
            "sds_nacks", "Responses that subscribers refused, by what their words say.", ["reason"]
        )
        self.refused_subscriptions = gauge(
            "sds_subscriptions_refused",
            "Names whose current version a subscriber refused; it goes on with the old one.",
        )
        self.lost_sockets = gauge(
            "sds_sockets_lost", "Sockets of this agent that somebody removed or replaced."
        )
        self.streams = gauge("sds_streams", "Open streams of subscribers, by call.", ["method"])
        self.events = counter(
            "sds_xds_events",
            "What happened on streams, by event: requests, responses, ACKs, absent names, limits "
            "and others.",
            ["event", "method"],
        )
        self.workloads = gauge(
            "sds_connected_workloads", "Workloads that have at least one stream open."
        )
        self.ahead = AheadCollector(registry)
        self.owners = OwnersCollector(registry)
        self.node = NodeCollector(registry)
        self.federation_refreshed = gauge(
            "sds_federation_refreshed_timestamp_seconds",
            "When the bundle of a foreign trust domain was last fetched and verified; 0 before the "
            "first time.",
            ["trust_domain"],
        )
        self.federation_due = gauge(
            "sds_federation_due_timestamp_seconds",
            "When that bundle is due to be fetched again, as `refresh` or its publisher says; 0 "
            "before the first time.",
            ["trust_domain"],
        )
        self.federation_failures = counter(
            "sds_federation_failures",
            "Fetches of a foreign trust domain's bundle that failed, by reason.",
            ["trust_domain", "reason"],
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
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self.issue_latency = histogram(
            "sds_ca_issue_latency_seconds",
            "How long a message of an agent (a Hello or a request) took at the authority, from "
            "when it was read to the answer.",
            buckets=_FAST,
        )
        self.certificates = counter(
            "sds_ca_certificates",
            "Certificates that were asked for, by outcome ('issued' or the reason). A request that "
            "is refused as a whole counts once.",
            ["outcome"],
        )
        start_at_zero(self.certificates, (ISSUED, *AUTHORITY))
        self.not_after = gauge(
            "sds_ca_not_after_timestamp_seconds",
            "When the issuing certificate expires; 0 before there is one.",
        )
        self.remaining = gauge(
            "sds_ca_remaining_ratio",
            "Part of the issuing certificate's life that is left, from its receipt: 1 is new, 0 "
            "expired (NaN before there is one).",
        )
        self.remaining.set(math.nan)
        self.port = PortCollector(registry)
