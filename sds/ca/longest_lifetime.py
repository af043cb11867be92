"""The longest lifetime of a workload's certificate that this authority can issue.

Owns that number. It limits no certificate (:mod:`sds.policy.nodes` and :mod:`sds.ca.kubernetes` do
that), but determines everything that must outlive every certificate: the root's shortest lifetime,
how long a retired root stays in the bundle, how long nonces live.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sds.policy.ruleset import RuleSet

BY_POLICY: Final = timedelta(days=1)
"""The assumption if a signed policy decides; it may grant longer lifetimes."""
WITHOUT_RULES: Final = timedelta(hours=1)


def longest_lifetime(rules: RuleSet, *, tokens: timedelta | None, signed_policy: bool) -> timedelta:
    """Return the longest lifetime that can be granted.

    Args:
        rules: the rules of the configuration.
        tokens: the longest lifetime for Kubernetes tokens; None if they are not accepted.
        signed_policy: whether a signed policy decides.
    """
    lifetimes = [
        grant.max_lifetime or rules.limits.max_lifetime
        for group in rules.nodes
        for grant in group.grants
    ]
    if tokens is not None:
        lifetimes.append(tokens)
    if signed_policy:
        lifetimes.append(BY_POLICY)
    return max(lifetimes, default=WITHOUT_RULES)
