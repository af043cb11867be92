"""Maps what was found about a caller to the identities that it may have.

Owns the form of ``workloads:`` rules (in the configuration and in a signed policy) and their
evaluation. Invariants: evaluation is pure; a rule that asks for an unknown fact neither matches nor
fails, so a fact that arrives late never turns one identity into another; a template is filled only
from facts, and its result is parsed as strictly as any other name.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from pydantic import AfterValidator, Field

from sds.errors import IdentityError, WorkloadError
from sds.identity import MAX_DNS_NAMES, Identity, KeyType, SpiffeId, parse_dns_name
from sds.rules.glob import check_text_pattern, text_matches
from sds.rules.pattern import parse_dns_pattern
from sds.rules.template import check_result, check_template, fill, template_fields
from sds.settings.field_types import Duration, Settings
from sds.workload.attestors import selector_types as selector_types_found
from sds.workload.facts import LABEL_TYPE
from sds.workload.service_dns_names import bounded_names

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from sds.identity import TrustDomain
    from sds.workload.facts import Facts

    _Found: TypeAlias = Mapping[str, Collection[str]]
    """The values that were found, by selector type."""

# Kubernetes: qualified names (optional DNS prefix, then at most 63 characters).
_LABEL_KEY: Final = re.compile(r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_FIELDS: Final = {
    "namespace": "k8s:ns",
    "service_account": "k8s:sa",
    "pod_name": "k8s:pod-name",
    "pod_uid": "k8s:pod-uid",
    "node": "k8s:node",
    "container_name": "k8s:container-name",
    "socket": "socket:name",
    "uid": "unix:uid",
    "gid": "unix:gid",
}
_SHORTEST_LIFETIME: Final = timedelta(seconds=2)
_LABEL_FIELD: Final = "pod_label:"
_TRUST_DOMAIN_FIELD: Final = "trust_domain"


class Matching(enum.StrEnum):
    """How many rules give identities."""

    FIRST = "first"
    ALL = "all"


def check_selector_type(selector_type: str) -> str:
    """Return the selector type itself, if rules can ask for it.

    Raises:
        ValueError: it is not one of the types that attestation finds (pydantic shows the text).
    """
    types = selector_types_found()
    if selector_type in types and not selector_type.endswith(":"):
        return selector_type
    if selector_type.startswith(LABEL_TYPE):
        key = selector_type.removeprefix(LABEL_TYPE)
        if _LABEL_KEY.fullmatch(key):
            return selector_type
        raise ValueError(f"{key[:200]!r} is not a Kubernetes label key")
    if any(each.endswith(":") and selector_type.startswith(each) for each in types):
        return selector_type
    known = ", ".join(sorted(each + "KEY" if each.endswith(":") else each for each in types))
    raise ValueError(f"unknown selector {selector_type[:200]!r}; known are {known}")


def _check_template(template: str) -> str:
    return check_template(
        template,
        known=[*_FIELDS, _TRUST_DOMAIN_FIELD, _LABEL_FIELD + "KEY"],
        is_known=lambda name: (
            name.startswith(_LABEL_FIELD)
            and _LABEL_KEY.fullmatch(name.removeprefix(_LABEL_FIELD)) is not None
        ),
    )


def check_lifetime(lifetime: timedelta) -> timedelta:
    """Return a certificate's lifetime as it is.

    Raises:
        ValueError: it is too short, or not in whole seconds (RFC 5280, section 4.1.2.5).
    """
    if lifetime < _SHORTEST_LIFETIME or lifetime.microseconds:
        raise ValueError("a certificate's times are whole seconds: use 2s or more")
    return lifetime


def check_trust_domain(template: str, trust_domain: TrustDomain) -> None:
    """Check that every SPIFFE ID by this template is in the trust domain, and has a path.

    Raises:
        ValueError: one may be elsewhere: nobody certifies it, and its roots are others.
    """
    filled = template.removeprefix("spiffe://").replace("{trust_domain}", trust_domain)
    domain, _, path = filled.partition("/")
    if domain != trust_domain:
        raise ValueError(f"spiffe_id: {template[:200]!r} is not in the trust domain {trust_domain}")
    if not path:
        raise ValueError(f"spiffe_id: {template[:200]!r} has no path")


SelectorType = Annotated[str, AfterValidator(check_selector_type)]
SelectorValue = Annotated[str, AfterValidator(check_text_pattern)]
Template = Annotated[str, AfterValidator(_check_template)]
_IdTemplate = Annotated[Template, AfterValidator(partial(check_result, parse=SpiffeId.parse))]
_NameTemplate = Annotated[Template, AfterValidator(partial(check_result, parse=parse_dns_name))]
_PatternTemplate = Annotated[
    Template, AfterValidator(partial(check_result, parse=parse_dns_pattern))
]


class WorkloadRule(Settings):
    """One rule: what a caller must show, and the identity that it then may have."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = Field(
        description="Names the rule in logs and answers."
    )
    match: Annotated[
        dict[SelectorType, SelectorValue | Annotated[list[SelectorValue], Field(min_length=1)]],
        Field(min_length=1),
    ] = Field(
        description="Types of selector, each with a value or a list of values. One value of "
        "each type must match. `text*` matches every value that begins with that "
        "text."
    )
    spiffe_id: _IdTemplate = Field(
        description="Template of the SPIFFE ID, such as "
        "`spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}`."
    )
    dns_names: tuple[_NameTemplate, ...] = Field(
        default=(), description="Templates of DNS names in the certificate."
    )
    service_dns_names: tuple[_PatternTemplate, ...] | None = Field(
        default=None,
        description="Templates of patterns. The certificate gets each name of a Service that "
        "selects the caller's pod and matches one of them. If unset: on ordinary nodes "
        "`*.{namespace}.svc.cluster.local`, `*.{namespace}.svc` and `*.{namespace}`; in a "
        "confidential guest none, because the API server says which Services there are: write "
        "`dns_names` there.",
    )
    lifetime: Annotated[Duration, AfterValidator(check_lifetime)] | None = Field(
        default=None, description="Lifetime of the certificate. If unset: the agent's default."
    )
    key_type: KeyType | None = Field(
        default=None, description="Kind of the key. If unset: the agent's default."
    )


NAMES_IN_NAMESPACE: Final = (
    "*.{namespace}.svc.cluster.local",
    "*.{namespace}.svc",
    "*.{namespace}",
)
"""The Service names that a pod gets if the API server is trusted with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The defaults for what rules leave open.

    Attributes:
        trust_domain: the value of ``{trust_domain}`` in templates.
        lifetime: the lifetime of certificates.
        key_type: the kind of keys.
        cluster_domain: the last labels of a Service's full name.
        service_dns_names: templates of patterns; empty in a confidential guest.
    """

    trust_domain: TrustDomain
    lifetime: timedelta = timedelta(hours=1)
    key_type: KeyType = KeyType.EC_P256
    cluster_domain: str = "cluster.local"
    service_dns_names: tuple[str, ...] = NAMES_IN_NAMESPACE


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedRule:
    """One identity and the rule that gave it."""

    rule: str
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The outcome for one caller at one moment.

    Attributes:
        granted: identities in the order of the rules; the first is ``default``. It may be empty.
        undetermined: why it cannot be decided yet; then nothing is granted.
        problems: rules that matched but whose templates gave no valid name, or too many, as text.
    """

    granted: tuple[MatchedRule, ...] = ()
    undetermined: WorkloadError | None = None
    problems: tuple[str, ...] = ()

    @property
    def identities(self) -> tuple[Identity, ...]:
        """Return the identities, without repeats."""
        return tuple(dict.fromkeys(grant.identity for grant in self.granted))


def decide(
    rules: Sequence[WorkloadRule], facts: Facts, *, matching: Matching, defaults: Defaults
) -> Decision:
    """Decide which identities the rules give to a caller about whom ``facts`` are known.

    With :attr:`Matching.FIRST`, the first rule that matches decides alone; if a rule before it
    cannot be decided yet, nothing is decided. With :attr:`Matching.ALL`, every rule that matches
    gives an identity, and all rules must be decided. A rule whose template gives no valid name
    grants nothing and, with ``first``, also ends the search.
    """
    granted: list[MatchedRule] = []
    problems: list[str] = []
    found = facts.by_type()
    for rule in rules:
        unknown = _unknown(rule, facts, found)
        if unknown is not None:
            return Decision(undetermined=unknown, problems=tuple(problems))
        if not _matches(rule, found):
            continue
        try:
            identity, problem = _identity(rule, facts, defaults)
            problems += problem
            granted.append(MatchedRule(rule=rule.name, identity=identity))
        except IdentityError as error:
            problems.append(f"rule {rule.name}: {error}")
        if matching is Matching.FIRST:
            break
    return Decision(granted=tuple(granted), problems=tuple(problems))


def selector_types(rules: Iterable[WorkloadRule]) -> frozenset[str]:
    """Return every selector type that the rules ask for, in conditions and in templates."""
    found: set[str] = set()
    for rule in rules:
        found |= set(rule.match)
        for template in (rule.spiffe_id, *rule.dns_names, *(rule.service_dns_names or ())):
            found |= {selector_of_field(name) for name in template_fields(template)}
    return frozenset(found - {""})


def _unknown(rule: WorkloadRule, facts: Facts, found: _Found) -> WorkloadError | None:
    """Return why the rule cannot be decided, or None if it can (a known mismatch decides it)."""
    if not facts.unknown:
        return None
    unknown: WorkloadError | None = None
    needed = {*rule.match, *selector_types([rule])}
    for selector_type in sorted(needed):
        why = facts.why_unknown(selector_type)
        if why is not None:
            unknown = unknown or why
        elif selector_type in rule.match and not _holds(rule, selector_type, found):
            return None
    return unknown


def _matches(rule: WorkloadRule, found: _Found) -> bool:
    return all(_holds(rule, selector_type, found) for selector_type in rule.match)


def may_match(rule: WorkloadRule, facts: Facts, found: Mapping[str, Collection[str]]) -> bool:
    """Say whether a rule matches, or may match once what is unknown about the caller is known."""
    return all(
        facts.why_unknown(selector_type) is not None or _holds(rule, selector_type, found)
        for selector_type in rule.match
    )


def spiffe_id_of(rule: WorkloadRule, facts: Facts, defaults: Defaults) -> SpiffeId | None:
    """Return the SPIFFE ID that a rule gives; None if it depends on something unknown.

    Raises:
        IdentityError: its template gives no valid name.
    """
    fields = template_fields(rule.spiffe_id)
    if any(facts.why_unknown(selector_of_field(name)) is not None for name in fields):
        return None
    return SpiffeId.parse(_fill(rule.spiffe_id, facts, defaults))


def _holds(rule: WorkloadRule, selector_type: str, found: _Found) -> bool:
    wanted = rule.match[selector_type]
    patterns = [wanted] if isinstance(wanted, str) else wanted
    return any(
        text_matches(pattern, value)
        for pattern in patterns
        for value in found.get(selector_type, ())
    )


def _names_of_services(rule: WorkloadRule, facts: Facts, defaults: Defaults) -> frozenset[str]:
    templates = rule.service_dns_names
    if templates is None:
        templates = defaults.service_dns_names
    if not (facts.services and templates):
        return frozenset()
    patterns = [_fill(template, facts, defaults) for template in templates]
    return bounded_names(facts.services, cluster_domain=defaults.cluster_domain, patterns=patterns)


def _identity(
    rule: WorkloadRule, facts: Facts, defaults: Defaults
) -> tuple[Identity, tuple[str, ...]]:
    """Return the identity, and why no name of a Service is in it if they are too many.

    An authority would refuse it as a whole, and whoever makes Services must not take identities.
    """
    names = frozenset(_fill(template, facts, defaults) for template in rule.dns_names)
    problem: tuple[str, ...] = ()
    every = names | _names_of_services(rule, facts, defaults)
    if len(every) <= MAX_DNS_NAMES:
        names = every
    elif every != names:
        text = (
            f"rule {rule.name}: with the names of Services the caller has {len(every)} DNS names, "
            f"and a certificate has at most {MAX_DNS_NAMES}: none of the Services' names counts "
            "(make service_dns_names narrower, or let fewer Services select the pod)"
        )
        problem = (text,)
    identity = Identity(
        spiffe_id=SpiffeId.parse(_fill(rule.spiffe_id, facts, defaults)),
        dns_names=tuple(names),
        lifetime=rule.lifetime or defaults.lifetime,
        key_type=rule.key_type or defaults.key_type,
    )
    return identity, problem


def selector_of_field(name: str) -> str:
    """Return the selector type that a template's field reads; empty for the trust domain."""
    if name.startswith(_LABEL_FIELD):
        return LABEL_TYPE + name.removeprefix(_LABEL_FIELD)
    return _FIELDS.get(name, "")


def _fill(template: str, facts: Facts, defaults: Defaults) -> str:
    def value_of(name: str) -> str:
        if name == _TRUST_DOMAIN_FIELD:
            return defaults.trust_domain
        values = facts.values(selector_of_field(name))
        if len(values) != 1:
            raise IdentityError(
                f"the template's field {{{name}}} has {len(values)} values for this caller",
                advice="ask for it in the rule's match, or leave it out",
            )
        return next(iter(values))

    return fill(template, value_of)
