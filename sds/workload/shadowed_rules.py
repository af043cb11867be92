"""Finds rules that never decide, because an earlier one matches all of their callers.

Owns the comparison, for rule sets of which the first rule that matches decides alone. Invariant: a
rule is named only if no caller can reach it, whatever is found about the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.rules.glob import text_matches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sds.workload.mapping import WorkloadRule

_FEW: Final = 1000
"""The most rules that are compared with each other."""


def shadowed(rules: Sequence[WorkloadRule]) -> Iterator[str]:
    """Yield a sentence for each rule that no caller reaches; of very many rules, nothing."""
    for number, rule in enumerate(rules) if len(rules) <= _FEW else ():
        first = next((one for one in rules[:number] if _covers(one, rule)), None)
        if first is not None:
            yield (
                f"rule {rule.name} never decides: {first.name} comes before it, and matches all of "
                "its callers (with `matching: first`): put the narrower one first"
            )


def _covers(wide: WorkloadRule, rule: WorkloadRule) -> bool:
    """Say whether whoever satisfies the rule satisfies the wide one too."""
    return all(
        kind in rule.match
        and all(
            any(text_matches(pattern, value) for pattern in _listed(wide.match[kind]))
            for value in _listed(rule.match[kind])
        )
        for kind in wide.match
    )


def _listed(values: str | list[str]) -> list[str]:
    return [values] if isinstance(values, str) else values
