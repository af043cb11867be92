"""Finds evidence that a policy accepts although it proves less than its author may think.

Owns the part of ``sds policy lint`` about evidence (docs/measurements.md) and about confidential
guests. Invariant: as in :mod:`sds.policy.lint`, only the document counts. A hexadecimal measurement
does not show what it covers, so warnings name only what the document shows.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sds.attestation.evidence import EvidenceKind
from sds.attestation.reference_values import PLACEHOLDERS
from sds.errors import IdentityError
from sds.rules.pattern import parse_spiffe_pattern
from sds.rules.template import template_fields
from sds.workload.mapping import selector_of_field
from sds.workload.pod_chosen_facts import CHOSEN
from sds.workload.service_dns_names import wildcards

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.attestation.reference_values import ReferenceValues
    from sds.policy.document import PolicyDocument
    from sds.policy.ruleset import NodeGroup
    from sds.rules.glob import Glob
    from sds.workload.mapping import WorkloadRule

CLAIM: Final = "k8s:"
"""The prefix of selectors that the API server asserts, so that a writer of etcd can change them."""
_FIELD: Final = re.compile(r"[^/{}]*\{[^{}]*\}[^/]*")
_ROLLBACK: Final = timedelta(days=31)
_TOKEN: Final = EvidenceKind.KUBERNETES_TOKEN
_OF_SNP: Final = {EvidenceKind.SEV_SNP, EvidenceKind("azure-snp-vtpm")}
_RTMRS: Final = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")


def guest_errors(document: PolicyDocument) -> Iterator[str]:
    """Return rules of guests that rest on claims alone, which a writer of etcd can satisfy."""
    guests = [group for group in document.nodes if is_measured(group) and group.grants]
    for rule in document.workloads:
        if not _rests_on_claims(rule):
            continue
        names = names_of(rule, document.trust_domain)
        for group in guests:
            granted = (glob for grant in group.grants for glob in grant.spiffe_ids)
            if names is None or any(glob.intersection(names) for glob in granted):
                yield (
                    f"workloads: {rule.name} rests on the API server's claims alone "
                    f"({', '.join(sorted(rule.match))}), and nodes: {group.name} are measured "
                    "machines: anyone who can write to etcd gets the identity; match what they "
                    "do not choose too (cri:pod-digest, or at least cri:container-digest)"
                )
                break


def guest_warnings(document: PolicyDocument) -> Iterator[str]:
    """Yield warnings about policies for measured machines."""
    if not any(map(is_measured, document.nodes)):
        return
    if document.not_after - document.not_before > _ROLLBACK:
        yield (
            "it is valid for more than 31 days: if every party restarts at once, an older "
            "policy is accepted again until its not_after"
        )
    for rule in document.workloads:
        claims = claimed_fields(rule)
        if claims and not _rests_on_claims(rule):
            yield (
                f"workloads: the name that {rule.name} gives is filled from the API server's "
                f"claims ({', '.join(claims)}); write it out if etcd is not trusted"
            )

        if rule.service_dns_names and (left := wildcards(rule.service_dns_names)):
            yield (
                f"workloads: {rule.name} takes names of Services within {', '.join(left)}: anyone "
                "who can write to etcd moves such a name to another pod of the rule; write the "
                "names under dns_names, and let clients match SPIFFE IDs (inbound, outbound:)"
            )


def _rests_on_claims(rule: WorkloadRule) -> bool:
    """Say whether a writer of etcd chooses everything that the rule asks for.

    Whoever writes a pod into etcd also writes its user, its image's paths and its containers'
    names.
    """
    claims = [kind for kind in rule.match if kind.startswith(CLAIM)]
    return bool(claims) and set(rule.match) <= {*claims, *CHOSEN}


def claimed_fields(rule: WorkloadRule) -> tuple[str, ...]:
    """Return the fields of the rule's SPIFFE ID and DNS names that claims fill, in order."""
    fields = (
        name
        for template in (rule.spiffe_id, *rule.dns_names)
        for name in template_fields(template)
        if selector_of_field(name).startswith(CLAIM)
    )
    return tuple(dict.fromkeys(fields))


def is_measured(group: NodeGroup) -> bool:
    """Say whether the group has, or may have, machines with confidential hardware."""
    if group.kinds:
        return any(kind is not _TOKEN for kind in group.kinds)
    return bool(group.measurements)


def names_of(rule: WorkloadRule, trust_domain: str) -> Glob | None:
    """Return a pattern of every name that the rule gives, or None if that cannot be told."""
    text = rule.spiffe_id.replace("{trust_domain}", trust_domain)
    text = _FIELD.sub("*", text)
    try:
        return parse_spiffe_pattern(text)
    except IdentityError:
        return None


def evidence_warnings(document: PolicyDocument) -> Iterator[str]:
    """Return what the reference values accept although it proves little."""
    for role, values in (
        ("agents", document.reference_values.agents),
        ("authorities", document.reference_values.authorities),
    ):
        if values is not None:
            if values.has_placeholders:
                yield PLACEHOLDERS.replace("reference_values", f"reference_values.{role}", 1)
            if role == "authorities" and values.any_machine:
                yield (
                    f"reference_values.{role} names no measurement: every machine with genuine "
                    "evidence can pose as the authority, unless the agents' configuration names one"
                )
            for text in _of_values(values, document):
                yield f"reference_values.{role}: {text}"
    yield from _refused_groups(document)


def _refused_groups(document: PolicyDocument) -> Iterator[str]:
    """Yield groups whose nodes are refused before their group counts.

    Issuing replicas ask the root as agents do, so ``agents`` applies to them too.
    """
    asking = document.reference_values.agents
    if asking is None or not asking.measurements or asking.others:
        return
    for group in document.nodes:
        lost = sorted(set(group.measurements) - set(asking.measurements))
        if lost:
            whose = "issuing replicas ask the root like agents" if group.authority else "agents ask"
            yield (
                f"nodes: {group.name} names measurements that reference_values.agents does not "
                f"accept ({', '.join(one[:16] + '…' for one in lost)}): their requests are refused "
                f"({whose}); add them there"
            )


def _of_values(values: ReferenceValues, document: PolicyDocument) -> Iterator[str]:
    named = {kind for group in document.nodes for kind in group.kinds}
    fields = values.model_fields_set
    snp = bool(named & _OF_SNP) or "snp" in fields or not (named or "tdx" in fields)
    if snp:
        yield from _snp(values)
    if EvidenceKind.TDX in named or "tdx" in fields:
        yield from _tdx(values, document)
    for kind in sorted({str(kind) for kind in named} | set(values.others)):
        if kind.endswith("-vtpm") or kind == "tpm":
            demands = values.others.get(kind, {})
            if not any(demands.get(name) for name in demands if "pcr" in name):
                yield (
                    f"{kind} is accepted whatever its PCRs are: the measurement then covers the "
                    "firmware only; name PCRs under others"
                )
            named_pcrs = demands.get("pcrs")
            if demands.get("require_secure_boot") and not (
                isinstance(named_pcrs, dict) and "7" in map(str, named_pcrs)
            ):
                yield (
                    f"{kind} requires Secure Boot as the paravisor reports it, which repeats what "
                    "the host configured: name PCR 7"
                )
            if kind.endswith("-vtpm") and not demands.get("measurements"):
                yield (
                    f"{kind} names no measurements of its own: a guest without a paravisor, under "
                    "a measurement that is accepted for another kind, can make up a vTPM"
                )


def _snp(values: ReferenceValues) -> Iterator[str]:
    if values.snp.permit_debug:
        yield "snp.permit_debug: the host can read and change a guest that may be debugged"
    if not values.snp.minimum_tcb and values.snp.minimum_firmware is None:
        yield "snp names no minimum_tcb: firmware with known holes is accepted"
    elif said := values.snp.without_minimum:
        yield said
    if values.snp.csp_ids and not _binds_image(values):
        yield (
            "snp.csp_ids: on AWS the launch measurement covers the firmware only, not the kernel "
            "and its disk"
        )


def _binds_image(values: ReferenceValues) -> bool:
    snp = values.snp
    return bool(snp.id_key_digests or snp.author_key_digests or snp.host_data)


def _tdx(values: ReferenceValues, document: PolicyDocument) -> Iterator[str]:
    if values.tdx.permit_debug:
        yield "tdx.permit_debug: the host can read and change a TD that may be debugged"
    in_groups = any(name in group.attributes for group in document.nodes for name in _RTMRS)
    if not in_groups and not any(getattr(values.tdx, name) for name in _RTMRS):
        yield (
            "tdx names no RTMR: MRTD covers the firmware only, not the kernel and its command line"
        )
    if not values.tdx.require_exchange_key:
        yield (
            "tdx does not demand the exchange key (require_exchange_key): every root process of a "
            "guest that reaches configfs-tsm can give evidence in the agent's place"
        )
    if not values.tdx.minimum_tcb_evaluation_number:
        yield "tdx names no minimum_tcb_evaluation_number: old collateral is accepted"
    for status in values.tdx.tcb_statuses:
        if status.startswith("OutOfDate"):
            yield f"tdx.tcb_statuses: {status} accepts platforms with known holes"
