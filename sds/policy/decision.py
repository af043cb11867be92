"""What a policy allows: pure decisions over tables made once from the document.

Owns :class:`Decisions`. Invariants: no clock, no socket; what is not allowed is refused; a
decision takes time in the length of the names and in the number of patterns that match them, not
in the number of rules. It may be made from a document that nobody signed (to lint, test and
explain it); enforcement takes it only out of a :class:`sds.policy.trust.Policy`.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from sds.errors import IdentityError, RefusedError
from sds.identity import SpiffeId
from sds.policy.pattern import (
    Glob,
    GlobIndex,
    dns_parts,
    format_dns_pattern,
    spiffe_parts,
)
from sds.workload.mapping import Decision, Defaults, Matching, decide

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import timedelta

    from sds.attestation.evidence import Claims
    from sds.identity import KeyType, TrustDomain
    from sds.policy.document import AllowRule, Grant, NodeGroup, PolicyDocument
    from sds.policy.requests import RequestPattern
    from sds.workload.facts import Facts
    from sds.workload.mapping import WorkloadRule

_Member = TypeVar("_Member")

OUTBOUND_SCHEME: Final = "spiffe://"
_FEW: Final = 8
_MANY: Final = 512
"""More wildcards than this are not compared with each other when a list is shortened."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """What a node may have of what it asked for.

    Attributes:
        group: the node group that allows it.
        lifetime: what was asked for, cut to the longest that policy allows.
        path_length: of an authority's certificate; None for a workload's.
    """

    group: str
    lifetime: timedelta
    path_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _GrantTable:
    group: str
    max_lifetime: timedelta
    key_types: frozenset[KeyType]
    dns_literals: Collection[tuple[str, ...]]
    dns_globs: tuple[Glob, ...]

    def uncovered(self, dns_names: Iterable[str]) -> list[str]:
        """The names that no pattern of the grant matches."""
        return [
            name
            for name in dns_names
            if (parts := dns_parts(name)) not in self.dns_literals
            and not any(glob.matches(parts) for glob in self.dns_globs)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _GroupTable:
    group: NodeGroup
    grants: GlobIndex[_GrantTable] = field(default_factory=GlobIndex)


class Decisions:
    """See the module.

    Args:
        document: the policy; it is not kept, only tables made from it.
    """

    def __init__(self, document: PolicyDocument) -> None:
        self.trust_domain: TrustDomain = document.trust_domain
        self._groups: dict[str, list[_GroupTable]] = {}
        self._groups_of_any: list[_GroupTable] = []
        for group in document.nodes:
            table = _group_table(group, document)
            for measurement in group.measurements:
                self._groups.setdefault(measurement, []).append(table)
            if not group.measurements:
                self._groups_of_any.append(table)
        self._workloads = _WorkloadTable(document.workloads, document.matching)
        self._defaults = Defaults(trust_domain=document.trust_domain)
        self._key_types = frozenset(document.limits.key_types)
        self.matching = document.matching
        self._services: dict[str, tuple[Glob, ...]] = {
            name: tuple(globs) for name, globs in document.services.items()
        }
        self._allow = _AllowTable(document.allow, enforce=document.requests_enforce)

    # --- nodes: what the authority enforces -----------------------------------------------------

    def authorize(
        self,
        claims: Claims,
        *,
        spiffe_id: SpiffeId,
        dns_names: Sequence[str],
        lifetime: timedelta,
        key_type: KeyType | None = None,
    ) -> Permit:
        """Whether a node with these verified claims may ask for this certificate.

        Args:
            claims: what the node's evidence says.
            spiffe_id: the SPIFFE ID that it asks for.
            dns_names: the DNS names that it asks for.
            lifetime: the lifetime that it asks for.
            key_type: the kind of key in the CSR; None where it cannot be told.

        Raises:
            RefusedError: a subclass that says what is not allowed: the measurement, the SPIFFE
                ID, a DNS name or the kind of key.
        """
        groups = self._groups_of(claims)
        names = ", ".join(table.group.name for table in groups)
        parts = spiffe_parts(spiffe_id)
        grants = [grant for table in groups for grant in table.grants.find(parts)]
        if not grants or not spiffe_id.path:
            raise RefusedError(
                f"nodes of the group {names} may not ask for {spiffe_id}",
                advice="grant it under nodes: in the policy, or ask from another node",
                reason="spiffe_id_not_allowed",
            )
        refusal: RefusedError | None = None
        for grant in grants:
            uncovered = grant.uncovered(dns_names)
            where = f"on nodes of the group {grant.group}"
            if uncovered:
                refusal = refusal or RefusedError(
                    f"{spiffe_id} may not have the DNS name {uncovered[0]} {where}",
                    advice="change dns_names of the grant in the policy",
                    reason="dns_name_not_allowed",
                )
            elif key_type is not None and key_type not in grant.key_types:
                refusal = RefusedError(
                    f"{spiffe_id} may not have a key of type {key_type} {where}",
                    advice=f"use one of {', '.join(sorted(grant.key_types))}",
                    reason="key_type_not_allowed",
                )
            else:
                return Permit(group=grant.group, lifetime=min(lifetime, grant.max_lifetime))
        assert refusal is not None
        raise refusal

    def authorize_signing(
        self, claims: Claims, *, lifetime: timedelta, key_type: KeyType | None = None
    ) -> Permit:
        """Whether a node with these verified claims may be an authority below the one it asks.

        Raises:
            RefusedError: no group of the node may, or not with such a key.
        """
        for table in self._groups_of(claims):
            grant = table.group.authority
            if grant is not None:
                if key_type is not None and key_type not in self._key_types:
                    raise RefusedError(
                        f"authorities may not have keys of type {key_type}",
                        advice=f"use one of {', '.join(sorted(self._key_types))}",
                        reason="key_type_not_allowed",
                    )
                return Permit(
                    group=table.group.name,
                    lifetime=min(lifetime, grant.max_lifetime),
                    path_length=grant.path_length,
                )
        raise RefusedError(
            "no node group of this node may be an authority",
            advice="set authority: of its group under nodes: in the policy",
            reason="signing_not_allowed",
        )

    def _groups_of(self, claims: Claims) -> list[_GroupTable]:
        groups = [
            table
            for table in (*self._groups.get(claims.measurement, ()), *self._groups_of_any)
            if _in_group(table.group, claims)
        ]
        if not groups:
            raise RefusedError(
                f"no node group holds a node with {claims.kind} measurement {claims.measurement}",
                advice="name the measurement in a group under nodes: in the policy",
                reason="measurement_not_allowed",
            )
        return groups

    # --- workloads: what the agent enforces -----------------------------------------------------

    def recognise(self, facts: Facts, *, defaults: Defaults | None = None) -> Decision:
        """Which identities a caller about whom ``facts`` are known may have (pure).

        ``defaults``: lifetime, kind of key and cluster domain where rules leave them open; the
        trust domain is always the policy's.
        """
        return self._workloads.decide(facts, defaults or self._defaults)

    @property
    def workload_rules(self) -> Sequence[WorkloadRule]:
        """The rules in the order of the document."""
        return self._workloads.rules

    # --- peers: what goes into the handshake ----------------------------------------------------

    def may_talk(self, source: SpiffeId, target: SpiffeId) -> bool:
        """Whether ``source`` may open connections to ``target``."""
        return self._allow.allows(spiffe_parts(source), spiffe_parts(target))

    def inbound(self, own: SpiffeId) -> tuple[Glob, ...]:
        """Patterns of exactly those who may open connections to ``own``; empty: nobody."""
        return _shortest(self._allow.sources_of(spiffe_parts(own)))

    def terms(self, own: SpiffeId) -> dict[Terms, tuple[Glob, ...]]:
        """Patterns of those who may ask ``own``, by what they may ask for; empty: nobody."""
        found = self._allow.terms_of(spiffe_parts(own))
        return {terms: _shortest(globs) for terms, globs in found.items()}

    def outbound(self, own: SpiffeId, target: str) -> tuple[Glob, ...]:
        """Patterns of exactly those that ``own`` may reach as ``target``; empty: nobody.

        ``target`` is a SPIFFE ID or the name of one of the policy's services; a service that the
        policy does not know has nobody behind it.
        """
        if target.startswith(OUTBOUND_SCHEME):
            try:
                wanted: tuple[Glob, ...] = (Glob(spiffe_parts(SpiffeId.parse(target))),)
            except IdentityError:
                return ()
        else:
            wanted = self._services.get(target, ())
        allowed = self._allow.targets_of(spiffe_parts(own))
        both = (pattern.intersection(permitted) for pattern in wanted for permitted in allowed)
        return _shortest(glob for glob in both if glob is not None)

    @property
    def services(self) -> Mapping[str, tuple[Glob, ...]]:
        """Names of services and who is behind each."""
        return self._services


def _group_table(group: NodeGroup, document: PolicyDocument) -> _GroupTable:
    table = _GroupTable(group=group)
    for grant in group.grants:
        made = _grant_table(group.name, grant, document)
        for glob in grant.spiffe_ids:
            table.grants.add(glob, made)
    return table


def _grant_table(group: str, grant: Grant, document: PolicyDocument) -> _GrantTable:
    limits = document.limits
    literals = tuple(glob.parts for glob in grant.dns_names if glob.is_literal)
    longest = grant.max_lifetime or limits.max_lifetime
    return _GrantTable(
        group=group,
        max_lifetime=min(longest, limits.max_lifetime),
        key_types=_both(tuple(grant.key_types), tuple(limits.key_types)),
        dns_literals=_members(literals),
        dns_globs=tuple(glob for glob in grant.dns_names if not glob.is_literal),
    )


@functools.cache
def _both(own: tuple[KeyType, ...], limits: tuple[KeyType, ...]) -> frozenset[KeyType]:
    """The kinds that a grant and the limits allow; few combinations exist, each kept once."""
    return frozenset(own or limits) & frozenset(limits)


def _members(values: tuple[_Member, ...]) -> Collection[_Member]:
    """For few values a tuple, which is a fifth of a set's size and as fast."""
    return values if len(values) <= _FEW else frozenset(values)


def _in_group(group: NodeGroup, claims: Claims) -> bool:
    if group.kinds and claims.kind not in group.kinds:
        return False
    if group.nodes and not any(_text_matches(name, claims.measurement) for name in group.nodes):
        return False
    return all(
        name in claims.attributes
        and any(_text_matches(value, claims.attributes[name]) for value in values)
        for name, values in group.attributes.items()
    )


def _text_matches(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


def _shortest(globs: Iterable[Glob]) -> tuple[Glob, ...]:
    """The patterns without those that others cover, sorted: small and stable on the wire."""
    unique = sorted(set(globs), key=lambda glob: (glob.parts, glob.rest))
    wild = [glob for glob in unique if not glob.is_literal]
    if not wild:
        return tuple(unique)
    index: GlobIndex[Glob] = GlobIndex()
    for glob in wild:
        index.add(glob, glob)
    if len(wild) <= _MANY:
        wild = [
            glob for glob in wild if not any(other != glob and other.covers(glob) for other in wild)
        ]
    kept = set(wild)
    return tuple(
        glob
        for glob in unique
        if (glob in kept if not glob.is_literal else not index.find(glob.parts))
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a rule allows of requests.

    Attributes:
        requests: patterns, of which one must match; empty: every request.
        enforced: False where the patterns only count what they would deny.
    """

    requests: tuple[RequestPattern, ...] = ()
    enforced: bool = True


ANYTHING: Final = Terms()


class _AllowTable:
    """Who may talk to whom, found from either side, and what they may ask for.

    Each distinct pattern of a side has a number; a rule is a pair of numbers. A decision looks
    both names up and asks for each pair of patterns that match whether a rule joins them.
    """

    def __init__(self, rules: Sequence[AllowRule], *, enforce: bool) -> None:
        self._globs: list[Glob] = []
        numbers: dict[Glob, int] = {}
        made_targets: dict[int, set[int]] = {}
        made_sources: dict[int, set[int]] = {}
        limited: dict[int, dict[Terms, set[int]]] = {}
        self._unlimited: set[tuple[int, int]] | None = None
        if any(rule.requests for rule in rules):
            self._unlimited = set()
        for rule in rules:
            sources = [self._number(glob, numbers) for glob in rule.from_]
            targets = [self._number(glob, numbers) for glob in rule.to]
            for source in sources:
                made_targets.setdefault(source, set()).update(targets)
            for target in targets:
                made_sources.setdefault(target, set()).update(sources)
            if rule.requests:
                terms = Terms(
                    requests=rule.request_patterns(), enforced=enforce and rule.requests_enforce
                )
                for target in targets:
                    limited.setdefault(target, {}).setdefault(terms, set()).update(sources)
            elif self._unlimited is not None:
                self._unlimited.update((one, two) for one in sources for two in targets)
        self._limited = {
            target: tuple((terms, tuple(numbers)) for terms, numbers in by_terms.items())
            for target, by_terms in limited.items()
        }
        self._targets = {one: _members(tuple(many)) for one, many in made_targets.items()}
        self._sources = {one: _members(tuple(many)) for one, many in made_sources.items()}
        self._from: GlobIndex[int] = GlobIndex()
        self._to: GlobIndex[int] = GlobIndex()
        for number in self._targets:
            self._from.add(self._globs[number], number)
        for number in self._sources:
            self._to.add(self._globs[number], number)

    def _number(self, glob: Glob, numbers: dict[Glob, int]) -> int:
        number = numbers.setdefault(glob, len(self._globs))
        if number == len(self._globs):
            self._globs.append(glob)
        return number

    def allows(self, source: tuple[str, ...], target: tuple[str, ...]) -> bool:
        targets = self._to.find(target)
        return bool(targets) and any(
            one in allowed
            for number in self._from.find(source)
            for allowed in (self._targets[number],)
            for one in targets
        )

    def sources_of(self, target: tuple[str, ...]) -> set[Glob]:
        return {
            self._globs[source]
            for number in self._to.find(target)
            for source in self._sources[number]
        }

    def terms_of(self, target: tuple[str, ...]) -> dict[Terms, set[Glob]]:
        """Who may ask ``target`` for what."""
        found: dict[Terms, set[Glob]] = {}
        for number in self._to.find(target):
            for source in self._sources[number]:
                if self._unlimited is None or (source, number) in self._unlimited:
                    found.setdefault(ANYTHING, set()).add(self._globs[source])
            for terms, sources in self._limited.get(number, ()):
                found.setdefault(terms, set()).update(self._globs[one] for one in sources)
        return found

    def targets_of(self, source: tuple[str, ...]) -> set[Glob]:
        return {
            self._globs[target]
            for number in self._from.find(source)
            for target in self._targets[number]
        }


class _WorkloadTable:
    """Workload rules, found by one selector each.

    Each rule lies under one of its conditions: a literal value of the type that has the most
    different values in the policy. A rule none of whose values under that type was found, while
    the type is known, does not match; every other rule is decided by :func:`decide`.
    """

    def __init__(self, rules: Sequence[WorkloadRule], matching: Matching) -> None:
        self.rules = tuple(rules)
        self._matching = matching
        variety: Counter[str] = Counter()
        seen: set[tuple[str, str]] = set()
        for rule in self.rules:
            for kind, values in rule.match.items():
                for value in _values(values):
                    if (kind, value) not in seen:
                        seen.add((kind, value))
                        variety[kind] += 1
        self._by_selector: dict[tuple[str, str], list[int]] = {}
        self._by_type: dict[str, list[int]] = {}
        self._always: list[int] = []
        for number, rule in enumerate(self.rules):
            literal = [
                kind
                for kind, values in rule.match.items()
                if not any(value.endswith("*") for value in _values(values))
            ]
            if not literal:
                self._always.append(number)
                continue
            kind = max(literal, key=lambda candidate: variety[candidate])
            self._by_type.setdefault(kind, []).append(number)
            for value in _values(rule.match[kind]):
                self._by_selector.setdefault((kind, value), []).append(number)

    def decide(self, facts: Facts, defaults: Defaults) -> Decision:
        """As :func:`sds.workload.mapping.decide` over all rules."""
        candidates = set(self._always)
        for kind, numbers in self._by_type.items():
            if facts.why_unknown(kind) is not None:
                candidates.update(numbers)
        for selector in facts.selectors:
            candidates.update(self._by_selector.get((selector.type, selector.value), ()))
        rules = [self.rules[number] for number in sorted(candidates)]
        return decide(rules, facts, matching=self._matching, defaults=defaults)


def _values(values: str | list[str]) -> list[str]:
    return [values] if isinstance(values, str) else values


def describe_dns(grant: Grant) -> str:
    """The DNS patterns of a grant as people read them."""
    return ", ".join(format_dns_pattern(glob) for glob in grant.dns_names) or "none"
