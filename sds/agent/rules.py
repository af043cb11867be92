"""Rules for callers of the node-wide socket, from the configuration or from a signed policy.

Owns :class:`DecidedRules`. Invariant: one engine, :class:`sds.policy.decision.Decisions`, decides
by signed rules and by those of the configuration file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sds.policy.decision import Decisions
from sds.policy.ruleset import RuleSet
from sds.workload.recognition import Rules

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.workload.facts import Facts
    from sds.workload.mapping import Decision, Defaults, Matching, WorkloadRule


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedRules(Rules):
    """Rules, and the decisions by them."""

    decisions: Decisions

    @classmethod
    def of(cls, decisions: Decisions, defaults: Defaults) -> Self:
        """Return the rules of these decisions; ``defaults`` fill in what they leave open."""
        return cls(
            rules=tuple(decisions.workload_rules),
            defaults=defaults,
            matching=decisions.matching,
            decisions=decisions,
        )

    @classmethod
    def configured(
        cls, rules: Iterable[WorkloadRule], *, matching: Matching, defaults: Defaults
    ) -> Self:
        """Turn the rules of a configuration file into those of an unsigned policy."""
        ruleset = RuleSet(
            trust_domain=defaults.trust_domain, workloads=list(rules), matching=matching
        )
        return cls.of(Decisions(ruleset), defaults)

    def decide(self, facts: Facts) -> Decision:
        return self.decisions.recognise(facts, defaults=self.defaults)
