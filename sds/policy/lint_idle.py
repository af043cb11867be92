"""Finds what a policy says in vain: no caller, node or machine can ever satisfy it.

Owns that part of ``sds policy lint``. Invariant: as in :mod:`sds.policy.lint`, only the document
counts, and each finding says why nothing comes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.attestation.evidence import EvidenceKind
from sds.policy.lint_attestation import names_of
from sds.rules.pattern import format_spiffe_pattern
from sds.workload.mapping import Matching
from sds.workload.shadowed_rules import shadowed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sds.policy.document import PolicyDocument

_TOKEN = EvidenceKind.KUBERNETES_TOKEN


def idle(document: PolicyDocument) -> Iterator[str]:
    """Return what has no effect, one line each."""
    yield from _groups(document)
    yield from _rules(document)
    yield from _services(document)
    yield from _products(document)


def _groups(document: PolicyDocument) -> Iterator[str]:
    for group in document.nodes:
        kinds = set(group.kinds)
        if group.nodes and kinds and _TOKEN not in kinds:
            yield (
                f"nodes: no machine is of {group.name}: only Kubernetes tokens have node names, "
                f"and kinds names {', '.join(sorted(kinds))}"
            )
        if group.measurements and (kinds == {_TOKEN} or group.nodes):
            yield (
                f"nodes: no machine is of {group.name}: a Kubernetes token has no measurement, "
                "and no other evidence a node's name"
            )


def _rules(document: PolicyDocument) -> Iterator[str]:
    if document.matching is Matching.FIRST:
        yield from (f"workloads: {text}" for text in shadowed(document.workloads))
    granted = [glob for one in document.nodes for grant in one.grants for glob in grant.spiffe_ids]
    for rule in document.workloads if granted else ():
        names = names_of(rule, document.trust_domain)
        if names is not None and not any(glob.intersection(names) for glob in granted):
            yield (
                f"workloads: no node may ask for the name that {rule.name} gives, "
                f"{format_spiffe_pattern(names)}: add it to the grants of a group under nodes"
            )


def _services(document: PolicyDocument) -> Iterator[str]:
    domains = {document.trust_domain, *(one.trust_domain for one in document.federation)}
    for name, globs in document.services.items():
        for glob in globs:
            if glob.parts[0] not in domains:
                yield (
                    f"services: {name}: {format_spiffe_pattern(glob)} is in a trust domain that "
                    "federation does not name"
                )


def _products(document: PolicyDocument) -> Iterator[str]:
    values = document.reference_values
    for role, one in (("agents", values.agents), ("authorities", values.authorities)):
        if one is None or not one.snp.products:
            continue
        if lost := sorted(set(one.snp.minimum_tcb) - set(one.snp.products)):
            yield (
                f"reference_values.{role}: snp.minimum_tcb of {', '.join(lost)} is for nobody: "
                "products does not name it"
            )
