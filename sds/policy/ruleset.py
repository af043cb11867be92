"""The rules of a policy document or of a configuration file.

Owns :class:`RuleSet` and its parts. Invariants: every name and pattern is valid; nothing is decided
here (:mod:`sds.policy.decision` does that); a rule set says nothing about whether it was signed
(:mod:`sds.policy.trust` does that).
"""

# ruff: noqa: RUF012  pydantic copies the defaults of fields

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import Field, StrictBool, StrictInt, model_validator

from sds.attestation.evidence import EvidenceKind  # noqa: TC001  pydantic reads annotations
from sds.identity import KeyType
from sds.policy.requests import RequestPattern
from sds.policy.rule_fields import (
    HostPattern,
    Measurement,
    Method,
    Name,
    PathPattern,
    Patterns,
    PolicyModel,
    Port,
)
from sds.rules.glob import Glob  # noqa: TC001  as above
from sds.rules.pattern import format_spiffe_pattern
from sds.settings.field_types import (  # noqa: TC001  as above
    DnsPattern,
    Duration,
    TrustDomainField,
)
from sds.workload.mapping import Matching, SelectorValue, WorkloadRule, check_trust_domain

if TYPE_CHECKING:
    from collections.abc import Iterable


MOST_PAIRS: Final = 250_000
"""The most pairs of patterns that all rules under ``allow`` join: each pair takes memory."""


class Grant(PolicyModel):
    """Identities that a group of nodes may ask for, and what their certificates may contain.

    Attributes:
        spiffe_ids: patterns of the SPIFFE IDs.
        dns_names: patterns of the DNS names; empty permits none.
        max_lifetime: the longest lifetime, to which longer requests are cut.
        key_types: kinds of key; those of the policy's ``limits`` if empty.
    """

    spiffe_ids: Patterns
    dns_names: list[DnsPattern] = []
    max_lifetime: Duration | None = None
    key_types: list[KeyType] = []


class AuthorityGrant(PolicyModel):
    """The right of nodes to be authorities below the one that they ask.

    Attributes:
        path_length: how many levels of authorities may be below them.
        max_lifetime: the longest lifetime of their signing certificate.
        key_types: kinds of key; those of the policy's ``limits`` if empty.
    """

    path_length: Annotated[StrictInt, Field(ge=0, le=8)] = 0
    max_lifetime: Duration = timedelta(days=7)
    key_types: list[KeyType] = []


class NodeGroup(PolicyModel):
    """Nodes that are treated alike, recognised by verified evidence that meets all conditions.

    Attributes:
        name: names the group in logs, records and explanations.
        kinds: kinds of evidence; any if empty.
        measurements: launch measurements (SEV-SNP MEASUREMENT, TDX MRTD), lower-case hex; if empty,
            any that the reference values accept.
        nodes: node names (``*`` at the end allowed), which only a Kubernetes token's claims have.
        attributes: maps claims to a value or values (``*`` at the end allowed), by the names of
            docs/attestation.md.
        grants: what they may ask for.
        authority: set if they may be authorities themselves.
    """

    name: Name
    kinds: list[EvidenceKind] = []
    measurements: list[Measurement] = []
    nodes: list[SelectorValue] = []
    attributes: dict[str, Annotated[list[SelectorValue], Field(min_length=1)]] = {}
    grants: list[Grant] = []
    authority: AuthorityGrant | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.grants and self.authority is None:
            raise ValueError(f"{self.name} grants nothing: grants or authority is needed")
        return self


class RuleLimits(PolicyModel):
    """Limits that apply to every certificate.

    Attributes:
        max_lifetime: the longest lifetime.
        key_types: kinds of key.
    """

    max_lifetime: Duration = timedelta(hours=24)
    key_types: list[KeyType] = list(KeyType)


class Requests(PolicyModel):
    """Requests that are allowed together: each field that is given must match.

    A field that is written without a value is an error: it would allow more than its author meant.

    Attributes:
        methods: HTTP methods, upper case.
        paths: patterns of paths after normalization: ``*`` for (the rest of) one segment, ``**``
            at the end for everything below.
        hosts: patterns of hosts; the request's case, port and final dot do not count.
        ports: ports of the server's listener; the only field that a TCP filter sees.
    """

    methods: Annotated[list[Method], Field(min_length=1)] = []
    paths: Annotated[list[PathPattern], Field(min_length=1)] = []
    hosts: Annotated[list[HostPattern], Field(min_length=1)] = []
    ports: Annotated[list[Port], Field(min_length=1)] = []

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not any((self.methods, self.paths, self.hosts, self.ports)):
            raise ValueError("name methods, paths, hosts or ports; leave requests out to allow all")
        return self

    def pattern(self) -> RequestPattern:
        """Return the pattern as decisions take it; the order of listed values has no meaning."""
        return RequestPattern(
            methods=tuple(sorted(set(self.methods))),
            paths=_in_order(self.paths),
            hosts=_in_order(self.hosts),
            ports=tuple(sorted(set(self.ports))),
        )


def _in_order(globs: list[Glob]) -> tuple[Glob, ...]:
    return tuple(sorted(set(globs), key=lambda glob: (glob.parts, glob.rest)))


class AllowRule(PolicyModel):
    """Who (``from``) may open connections to whom (``to``): any of these to any of those.

    Attributes:
        from: patterns of clients.
        to: patterns of servers.
        requests: which requests they may send; every request if absent.
        requests_enforce: false counts requests that ``requests`` does not allow (Envoy's shadow
            rules) and lets them through; who may connect is always enforced.
    """

    from_: Annotated[Patterns, Field(alias="from")]
    to: Patterns
    requests: Annotated[list[Requests], Field(min_length=1)] = []
    requests_enforce: StrictBool = True

    def request_patterns(self) -> tuple[RequestPattern, ...]:
        """Return what they may ask for, each once; empty means everything."""
        patterns = {requests.pattern(): None for requests in self.requests}
        return tuple(sorted(patterns, key=str))


class RuleSet(PolicyModel):
    """Rules of one trust domain.

    Attributes:
        trust_domain: the trust domain that they are for.
        nodes: which nodes may ask for which identities.
        matching: whether the first workload rule that matches decides, or all of them.
        workloads: which callers on a node's socket have which identities.
        limits: limits that apply to every certificate.
        services: names for sets of identities, as in ``outbound:<service>``.
        allow: who may talk to whom; nobody else may.
        requests_enforce: false enforces no rule's ``requests``, see :class:`AllowRule`.
    """

    trust_domain: TrustDomainField
    nodes: list[NodeGroup] = []
    matching: Matching = Matching.FIRST
    workloads: list[WorkloadRule] = []
    limits: RuleLimits = RuleLimits()
    services: dict[Name, Patterns] = {}
    allow: list[AllowRule] = []
    requests_enforce: StrictBool = True

    @model_validator(mode="after")
    def _rules_agree(self) -> Self:
        no_repeats("nodes", (group.name for group in self.nodes))
        no_repeats("workloads", (rule.name for rule in self.workloads))
        for rule in self.workloads:
            check_trust_domain(rule.spiffe_id, self.trust_domain)
        for group in self.nodes:
            for grant in group.grants:
                for glob in grant.spiffe_ids:
                    if glob.parts[0] != self.trust_domain:
                        raise ValueError(
                            f"nodes: {group.name} may not ask for {format_spiffe_pattern(glob)}: "
                            f"it is not in {self.trust_domain}"
                        )
        pairs = sum(len(rule.from_) * len(rule.to) for rule in self.allow)
        if pairs > MOST_PAIRS:
            raise ValueError(
                f"allow joins {pairs} pairs of patterns, more than {MOST_PAIRS}: write patterns "
                "with stars in place of long lists under from and to"
            )
        return self


def no_repeats(what: str, names: Iterable[str]) -> None:
    """Check that each of these names occurs once.

    Raises:
        ValueError: one of them occurs twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} has {name!r} twice")
        seen.add(name)
