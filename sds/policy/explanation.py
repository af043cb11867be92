"""Explains why a policy allows something or does not.

Owns the answers of ``sds policy explain``. Invariant: the verdict comes from
:mod:`sds.policy.decision`, the code that enforces; the words beside it name the rules of the
document that led to it, or the closest ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sds.errors import IdentityError, RefusedError
from sds.policy.decision import Decisions
from sds.policy.lint_attestation import CLAIM, claimed_fields, is_measured
from sds.policy.nodes import RequestedCertificate, describe_dns
from sds.policy.normal_path import normalized_path
from sds.policy.requests import matches_any
from sds.rules.duration import format_duration
from sds.rules.glob import text_matches
from sds.rules.pattern import format_spiffe_pattern, format_spiffe_patterns, spiffe_parts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from sds.attestation.evidence import Claims
    from sds.identity import SpiffeId
    from sds.policy.document import PolicyDocument
    from sds.policy.requests import Request, RequestPattern
    from sds.policy.ruleset import AllowRule
    from sds.rules.glob import Glob
    from sds.workload.facts import Facts

_NEAREST: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyAnswer:
    """The answer to one question.

    Attributes:
        allowed: the verdict.
        question: what was asked, as a sentence.
        because: what led to the verdict, one line each.
    """

    allowed: bool
    question: str
    because: tuple[str, ...]


def explain_talk(document: PolicyDocument, source: SpiffeId, target: SpiffeId) -> PolicyAnswer:
    """Explain whether ``source`` may open connections to ``target``."""
    allowed = Decisions(document).may_talk(source, target)
    from_side, to_side = spiffe_parts(source), spiffe_parts(target)
    because: list[str] = []
    near: list[str] = []
    for number, rule in enumerate(document.allow):
        from_matches = _any(rule.from_, from_side)
        to_matches = _any(rule.to, to_side)
        text = f"allow[{number}]: {_rule(rule)}"
        if from_matches and to_matches:
            because.append(text)
        elif from_matches:
            near.append(f"{text} (its 'to' does not match {target})")
        elif to_matches:
            near.append(f"{text} (its 'from' does not match {source})")
    if not because:
        because = ["no rule under `allow` matches both", *_some(near)]
    return PolicyAnswer(
        allowed=allowed, question=f"may {source} talk to {target}?", because=tuple(because)
    )


def explain_request(
    document: PolicyDocument, source: SpiffeId, target: SpiffeId, request: Request
) -> PolicyAnswer:
    """Explain whether ``target``'s Envoy lets a request of ``source`` through.

    Args:
        document: the policy.
        source: who asks.
        target: who is asked.
        request: the request as it is sent; its path is normalized here, as in Envoy.
    """
    question = f"may {source} ask {target} for {request.method} {request.path}"
    question += f" of {request.host}?" if request.host else "?"
    try:
        normal = replace(request, path=normalized_path(request.path))
    except IdentityError as error:
        return PolicyAnswer(allowed=False, question=question, because=(str(error),))
    allowed = Decisions(document).may_request(source, target, normal)
    because, near = [], []
    if normal.path != request.path:
        because.append(f"after normalization the path is {normal.path}")
    from_side, to_side = spiffe_parts(source), spiffe_parts(target)
    found = False
    for number, rule in enumerate(document.allow):
        if not (_any(rule.from_, from_side) and _any(rule.to, to_side)):
            continue
        text = f"allow[{number}]: {_rule(rule)}"
        patterns = rule.request_patterns()
        said = " or ".join(map(str, patterns)) or "everything"
        if matches_any(patterns, normal):
            found = True
            because.append(f"{text}: {said}")
        elif not (rule.requests_enforce and document.requests_enforce):
            found = True
            because.append(f"{text}: {said}; another request is counted and let through")
        else:
            near.append(f"{text}: {said}{_differs(patterns, normal)}")
    if not found and near:
        because += ["no rule that lets it connect allows this request", *_some(near)]
    elif not found:
        because += explain_talk(document, source, target).because
    return PolicyAnswer(allowed=allowed, question=question, because=tuple(because))


def _differs(patterns: Sequence[RequestPattern], request: Request) -> str:
    """Return what keeps a request from the nearest pattern."""
    reasons = []
    for pattern in patterns:
        wrong = [
            what
            for what, part in (
                ("method", replace(pattern, paths=(), hosts=(), ports=())),
                ("path", replace(pattern, methods=(), hosts=(), ports=())),
                ("host", replace(pattern, methods=(), paths=(), ports=())),
                ("port", replace(pattern, methods=(), paths=(), hosts=())),
            )
            if not part.matches(request)
        ]
        reasons.append(wrong)
    nearest = min(reasons, key=len, default=[])
    return f" (it differs in {' and '.join(nearest)})" if nearest else ""


def explain_service(document: PolicyDocument, source: SpiffeId, service: str) -> PolicyAnswer:
    """Explain whom ``source`` may reach under the name of a service."""
    reachable = Decisions(document).outbound(source, service)
    behind = document.services.get(service)
    if behind is None:
        because = [f"services: does not know {service!r}"]
    else:
        because = [f"services: {service} is {format_spiffe_patterns(behind)}"]
        because += [f"may be reached: {format_spiffe_pattern(glob)}" for glob in reachable]
        if not reachable:
            because.append("no rule under `allow` lets it reach any of them")
    return PolicyAnswer(
        allowed=bool(reachable),
        question=f"may {source} talk to the service {service}?",
        because=tuple(because),
    )


def explain_caller(document: PolicyDocument, facts: Facts, wanted: SpiffeId | None) -> PolicyAnswer:
    """Explain which identities a caller with these selectors has, or whether it has ``wanted``."""
    decision = Decisions(document).recognise(facts)
    found = decision.identities
    because = [
        f"workloads: rule {grant.rule} gives {grant.identity.spiffe_id}"
        + (f" with {', '.join(grant.identity.dns_names)}" if grant.identity.dns_names else "")
        for grant in decision.granted
    ]
    because += _names_of_services(document, {grant.rule for grant in decision.granted})
    because += _claims(document, {grant.rule for grant in decision.granted})
    because += decision.problems
    if decision.undetermined is not None:
        because.append(f"undecided: {decision.undetermined}")
    if not because:
        because = ["no rule under `workloads` matches", *_some(_near_rules(document, facts))]
    allowed = bool(found) if wanted is None else wanted in {one.spiffe_id for one in found}
    who = ", ".join(sorted(map(str, facts.selectors)))
    question = f"may a caller with {who} have " + (
        "an identity?" if wanted is None else f"the identity {wanted}?"
    )
    return PolicyAnswer(allowed=allowed, question=question, because=tuple(because))


def _names_of_services(document: PolicyDocument, granting: set[str]) -> list[str]:
    """Return which names of Services the rules add, one line for each rule that does."""
    said = []
    for rule in document.workloads:
        if rule.name not in granting:
            continue
        if rule.service_dns_names:
            said.append(
                f"rule {rule.name} adds names of Services, which the API server asserts, within "
                f"{', '.join(rule.service_dns_names)}"
            )
        elif rule.service_dns_names is None and any(map(is_measured, document.nodes)):
            said.append(
                f"rule {rule.name} adds names of Services on ordinary nodes and none in "
                "confidential guests; service_dns_names says otherwise"
            )
    return said


def explain_node(
    document: PolicyDocument,
    claims: Claims,
    wanted: SpiffeId,
    dns_names: Sequence[str],
    lifetime: timedelta,
) -> PolicyAnswer:
    """Explain whether a node with these claims may ask for a certificate."""
    question = f"may a node with {claims.kind} measurement {claims.measurement} ask for {wanted}?"
    try:
        permit = Decisions(document).permit(
            claims,
            RequestedCertificate(spiffe_id=wanted, dns_names=tuple(dns_names), lifetime=lifetime),
        )
    except RefusedError as error:
        near = [
            f"nodes: {group.name} grants {format_spiffe_patterns(grant.spiffe_ids)}, "
            f"DNS names {describe_dns(grant)}"
            for group in document.nodes
            for grant in group.grants
        ]
        return PolicyAnswer(allowed=False, question=question, because=(str(error), *_some(near)))
    because = (f"nodes: {permit.group} grants it, for {format_duration(permit.lifetime)}",)
    return PolicyAnswer(allowed=True, question=question, because=because)


def _claims(document: PolicyDocument, rules: set[str]) -> list[str]:
    """Return which parts of these rules anyone who can write to etcd can satisfy."""
    lines = []
    for rule in document.workloads:
        if rule.name not in rules:
            continue
        claims = sorted(kind for kind in rule.match if kind.startswith(CLAIM))
        if claims:
            alone = " alone" if len(claims) == len(rule.match) else ""
            lines.append(
                f"workloads: rule {rule.name} rests on claims of kubelet and API server{alone}: "
                + ", ".join(claims)
            )
        if fields := claimed_fields(rule):
            lines.append(
                f"workloads: rule {rule.name} fills its names from claims of kubelet and API "
                f"server: {', '.join(fields)}"
            )
    return lines


def _near_rules(document: PolicyDocument, facts: Facts) -> list[str]:
    near = []
    for rule in document.workloads:
        missing = [
            f"{kind} is {' or '.join(sorted(facts.values(kind))) or 'absent'}, not "
            f"{values if isinstance(values, str) else ' or '.join(values)}"
            for kind, values in rule.match.items()
            if not any(
                text_matches(one, value)
                for one in ([values] if isinstance(values, str) else values)
                for value in facts.values(kind)
            )
        ]
        if len(missing) < len(rule.match) or len(rule.match) == 1:
            near.append(f"rule {rule.name} does not match: {'; '.join(missing)}")
    return near


def _any(globs: list[Glob], name: tuple[str, ...]) -> bool:
    return any(glob.matches(name) for glob in globs)


def _rule(rule: AllowRule) -> str:
    return f"from {format_spiffe_patterns(rule.from_)} to {format_spiffe_patterns(rule.to)}"


def _some(lines: list[str]) -> list[str]:
    more = len(lines) - _NEAREST
    return [*lines[:_NEAREST], *([f"and {more} more that come equally close"] if more > 0 else [])]
