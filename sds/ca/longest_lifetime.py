"""The longest lifetime of a workload's certificate that this authority can issue.

Owns that number. Whatever must outlive every certificate is derived from it: the root's least
lifetime, how long a retired root stays in the bundle, how long the journal's nonces live.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sds.policy.ruleset import RuleSet

BY_POLICY: Final = timedelta(days=1)
"""What is assumed where a signed policy decides; it may grant more to certificates."""
WITHOUT_RULES: Final = timedelta(hours=1)


def longest_lifetime(rules: RuleSet, *, tokens: timedelta | None, signed_policy: bool) -> timedelta:
    """Return the longest lifetime that can be granted.

    Args:
        rules: of the configuration.
        tokens: the longest for Kubernetes tokens; None if they are not taken.
        signed_policy: whether a signed policy decides.
    """
    lifetimes = [
        grant.max_lifetime or rules.limits.max_lifetime
        for group in rules.nodes
        for grant in group.grants
    ]
    if tokens is not None:
        lifetimes.append(tokens)
    return max(lifetimes, default=BY_POLICY if signed_policy else WITHOUT_RULES)
