"""Decides what rules allow, by pure functions over tables made once from a rule set.

Owns :class:`Decisions`, the only engine: it decides by the rules of a configuration file, of an
unsigned document (to lint, test and explain it) and of a signed policy. Invariants: there is no
clock and no socket; what is not allowed is refused; the time of a decision depends on the length of
the names and on the number of patterns that match them, not on the number of rules. If a signature
is required, enforcement takes a decision only from a :class:`sds.policy.trust.Policy`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.errors import IdentityError
from sds.identity import SpiffeId
from sds.policy.allow import AllowTable, Terms, shortest
from sds.policy.nodes import NodeTable, Permit, RequestedCertificate
from sds.policy.requests import Request, matches_any
from sds.policy.workload_table import WorkloadTable
from sds.rules.glob import Glob
from sds.rules.pattern import spiffe_parts
from sds.workload.mapping import Decision, Defaults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sds.attestation.evidence import Claims
    from sds.identity import TrustDomain
    from sds.policy.ruleset import RuleSet
    from sds.workload.facts import Facts
    from sds.workload.mapping import WorkloadRule

OUTBOUND_SCHEME: Final = "spiffe://"


class Decisions:
    """Decides what a rule set allows.

    Args:
        rules: the rule set; only tables made from it are kept.
    """

    def __init__(self, rules: RuleSet) -> None:
        self.trust_domain: TrustDomain = rules.trust_domain
        self._nodes = NodeTable(rules)
        self._workloads = WorkloadTable(rules.workloads, rules.matching)
        self._defaults = Defaults(trust_domain=rules.trust_domain)
        self.matching = rules.matching
        self._services: dict[str, tuple[Glob, ...]] = {
            name: tuple(globs) for name, globs in rules.services.items()
        }
        self._allow = AllowTable(rules.allow, enforce=rules.requests_enforce)

    # --- nodes: what the authority enforces -----------------------------------------------------

    def permit(self, claims: Claims, wanted: RequestedCertificate) -> Permit:
        """Decide what a node with these verified claims may have of the requested certificate.

        Raises:
            RefusedError: the reason says what is not allowed.
        """
        return self._nodes.permit(claims, wanted)

    # --- workloads: what the agent enforces -----------------------------------------------------

    def recognise(self, facts: Facts, *, defaults: Defaults | None = None) -> Decision:
        """Decide which identities a caller about whom ``facts`` are known may have (pure).

        ``defaults`` give lifetime, kind of key and cluster domain if rules leave them open; the
        trust domain is always the policy's.
        """
        return self._workloads.decide(facts, defaults or self._defaults)

    @property
    def workload_rules(self) -> Sequence[WorkloadRule]:
        """Return the rules in the order of the document."""
        return self._workloads.rules

    # --- peers: what goes into the handshake ----------------------------------------------------

    def may_talk(self, source: SpiffeId, target: SpiffeId) -> bool:
        """Say whether ``source`` may open connections to ``target``."""
        return self._allow.allows(spiffe_parts(source), spiffe_parts(target))

    def inbound(self, own: SpiffeId) -> tuple[Glob, ...]:
        """Return patterns of exactly those who may connect to ``own``; empty means nobody."""
        return shortest(self._allow.sources_of(spiffe_parts(own)))

    def may_request(self, source: SpiffeId, target: SpiffeId, request: Request) -> bool:
        """Say whether ``target``'s Envoy lets this request of ``source`` through.

        ``request`` is normalized (:func:`sds.policy.normal_path.normalized_path`).
        """
        parts = spiffe_parts(source)
        return any(
            (not terms.enforced or matches_any(terms.requests, request))
            and any(glob.matches(parts) for glob in globs)
            for terms, globs in self._allow.terms_of(spiffe_parts(target)).items()
        )

    def terms(self, own: SpiffeId) -> dict[Terms, tuple[Glob, ...]]:
        """Return patterns of those who may send requests to ``own``, by request."""
        found = self._allow.terms_of(spiffe_parts(own))
        return {terms: shortest(globs) for terms, globs in found.items()}

    def outbound(self, own: SpiffeId, target: str) -> tuple[Glob, ...]:
        """Return patterns of exactly those that ``own`` may reach as ``target``, or none.

        ``target`` is a SPIFFE ID or the name of one of the policy's services; an unknown service
        has no members.
        """
        if target.startswith(OUTBOUND_SCHEME):
            try:
                wanted: tuple[Glob, ...] = (Glob(spiffe_parts(SpiffeId.parse(target))),)
            except IdentityError:
                return ()
        else:
            wanted = self._services.get(target, ())
        source = spiffe_parts(own)
        # Callers make targets up, and may reach very many: a name is looked up, not compared.
        found = {
            glob for glob in wanted if glob.is_literal and self._allow.allows(source, glob.parts)
        }
        if wild := [glob for glob in wanted if not glob.is_literal]:
            allowed = self._allow.targets_of(source)
            both = (pattern.intersection(permitted) for pattern in wild for permitted in allowed)
            found |= {glob for glob in both if glob is not None}
        return shortest(found)

    @property
    def services(self) -> Mapping[str, tuple[Glob, ...]]:
        """Return the names of services, and the identities of each."""
        return self._services
