"""A table of the ``workloads`` rules: which callers have which identities.

Owns :class:`WorkloadTable`. Invariant: it decides like :func:`sds.workload.mapping.decide` over all
rules, and looks only at those that can match.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from sds.rules.glob import has_star
from sds.workload.mapping import Decision, Defaults, Matching, decide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sds.workload.facts import Facts
    from sds.workload.mapping import WorkloadRule


class WorkloadTable:
    """Workload rules, found by one selector each.

    Each rule is filed under one of its conditions: a literal value of the type that has the most
    different values in the policy. If that type is known and none of the rule's values was found,
    the rule does not match; :func:`decide` decides every other rule.
    """

    def __init__(self, rules: Sequence[WorkloadRule], matching: Matching) -> None:
        self.rules = tuple(rules)
        self._matching = matching
        variety: Counter[str] = Counter()
        seen: set[tuple[str, str]] = set()
        for rule in self.rules:
            for kind, values in rule.match.items():
                for value in rule_values(values):
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
                if not any(map(has_star, rule_values(values)))
            ]
            if not literal:
                self._always.append(number)
                continue
            kind = max(literal, key=lambda candidate: variety[candidate])
            self._by_type.setdefault(kind, []).append(number)
            for value in rule_values(rule.match[kind]):
                self._by_selector.setdefault((kind, value), []).append(number)

    def decide(self, facts: Facts, defaults: Defaults) -> Decision:
        """Decide like :func:`sds.workload.mapping.decide` over all rules."""
        candidates = set(self._always)
        for kind, numbers in self._by_type.items():
            if facts.why_unknown(kind) is not None:
                candidates.update(numbers)
        for selector in facts.selectors:
            candidates.update(self._by_selector.get((selector.type, selector.value), ()))
        rules = [self.rules[number] for number in sorted(candidates)]
        return decide(rules, facts, matching=self._matching, defaults=defaults)


def rule_values(values: str | list[str]) -> list[str]:
    """Return the values of one condition as a list."""
    return [values] if isinstance(values, str) else values
