"""Finds what is valid in a policy but probably not meant.

Owns the findings of ``sds policy lint``. Invariant: a finding depends only on the document and the
moment. The model (:mod:`sds.policy.document`) refuses documents that cannot be used.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from sds.policy.lint_attestation import evidence_warnings, guest_errors, guest_warnings
from sds.policy.lint_idle import idle
from sds.rules.glob import Glob, GlobIndex
from sds.rules.pattern import format_spiffe_pattern
from sds.workload.pod_chosen_facts import names_pods, open_to_pods
from sds.workload.selector_forms import impossible_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

    from sds.policy.document import PolicyDocument
    from sds.policy.ruleset import AllowRule

_SOON: Final = timedelta(days=3)
_LONG: Final = timedelta(days=90)
_FEW: Final = 1000
"""The most rules that are compared with each other."""


def errors(document: PolicyDocument) -> list[str]:
    """Return what breaks a promise of docs/threat-model.md, one line each."""
    return list(guest_errors(document))


def warnings(document: PolicyDocument, *, now: datetime) -> list[str]:
    """Return what a careful colleague would ask about, one line each."""
    return [
        *_window(document, now),
        *_signers(document),
        *_nodes(document),
        *evidence_warnings(document),
        *guest_warnings(document),
        *(f"workloads: {text}" for text in impossible_values(document.workloads)),
        *_open_to_pods(document),
        *_allow(document),
        *_federation(document),
        *idle(document),
    ]


def _open_to_pods(document: PolicyDocument) -> Iterator[str]:
    """Yield rules that any pod can satisfy, if the document shows that there are pods."""
    if document.pods or any(map(names_pods, document.workloads)):
        yield from (f"workloads: {text}" for text in open_to_pods(document.workloads))


def _window(document: PolicyDocument, now: datetime) -> Iterator[str]:
    if document.not_after <= now:
        yield "not_after has passed: no agent and no authority accepts it"
    elif document.not_after - now < _SOON:
        yield "not_after is less than 3 days away: when it passes, nothing is allowed any more"
    if document.not_after - document.not_before > _LONG:
        yield (
            "it is valid for more than 90 days: an attacker who cuts a party off from "
            "every honest peer can keep it at this epoch for that long"
        )


def _signers(document: PolicyDocument) -> Iterator[str]:
    signers = document.signers
    if signers is not None and signers.threshold == 1 and len(signers.keys) > 1:
        yield "signers: any single one of the keys can change everything (threshold 1)"
    if signers is not None and signers.threshold == len(signers.keys):
        yield "signers: if one key is lost, no later epoch can be signed (threshold = keys)"


def _nodes(document: PolicyDocument) -> Iterator[str]:
    if not document.nodes:
        yield "nodes is empty: no node may ask for any identity"
    for group in document.nodes:
        if not (group.measurements or group.nodes or group.attributes):
            yield (
                f"nodes: {group.name} names neither measurements, nodes nor attributes: whatever "
                "the reference values accept belongs to it"
            )
        if any(not one.strip("0") for one in group.measurements):
            yield f"nodes: {group.name} names the zeros of an example, which no machine shows"
        for grant in group.grants:
            for glob in grant.spiffe_ids:
                if glob == Glob((document.trust_domain,), rest=True):
                    yield f"nodes: {group.name} may ask for every identity"


def _allow(document: PolicyDocument) -> Iterator[str]:
    if not document.allow:
        yield "allow is empty: nobody may talk to anybody"
    domains = {document.trust_domain, *(one.trust_domain for one in document.federation)}
    for number, rule in enumerate(document.allow):
        for side, globs in (("from", rule.from_), ("to", rule.to)):
            for glob in globs:
                if glob.parts[0] not in domains:
                    yield (
                        f"allow[{number}].{side}: {format_spiffe_pattern(glob)} is in a trust "
                        "domain that federation does not name"
                    )
    if len(document.allow) <= _FEW:
        yield from _idle(document.allow)


def _idle(rules: Sequence[AllowRule]) -> Iterator[str]:
    """Return rules that another one makes superfluous; of two equal ones, the later."""
    for number, rule in enumerate(rules):
        for other, wider in enumerate(rules):
            equal = rule == wider
            if (not equal or other < number) and _covers(wider, rule):
                yield f"allow[{number}] says nothing that allow[{other}] does not say"
                break


def _covers(wider: AllowRule, rule: AllowRule) -> bool:
    return _covers_requests(wider, rule) and all(
        any(one.covers(glob) for one in wides)
        for wides, globs in ((wider.from_, rule.from_), (wider.to, rule.to))
        for glob in globs
    )


def _covers_requests(wider: AllowRule, rule: AllowRule) -> bool:
    """Say whether every request that the rule lets through is let through, and counted, anyway."""
    if not wider.requests:
        return True
    if not rule.requests or (wider.requests_enforce and not rule.requests_enforce):
        return False
    return set(wider.request_patterns()) >= set(rule.request_patterns())


def _federation(document: PolicyDocument) -> Iterator[str]:
    index: GlobIndex[bool] = GlobIndex()
    for rule in document.allow:
        for glob in (*rule.from_, *rule.to):
            index.add(Glob((glob.parts[0],)), value=True)
    for domain in document.federation:
        if not index.find((domain.trust_domain,)):
            yield f"federation: no rule under allow names anyone of {domain.trust_domain}"
