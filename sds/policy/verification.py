"""Verifies evidence by the reference values of the policy and of the configuration.

Owns the choice of reference values at each verification. Invariants: if the policy names values for
the role, they decide, also after its end, which gives nobody a right; if the configuration names
some too, both must accept; a change of policy applies from the next verification on.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from sds.attestation.reference_values import ReferenceValues
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sds.attestation.evidence import Claims, Evidence, ReportData, Verifier
    from sds.policy.holder import PolicyHolder


class Role(enum.StrEnum):
    """The party whose evidence is verified."""

    AGENTS = "agents"
    AUTHORITIES = "authorities"


class PolicyVerifier:
    """A :class:`sds.attestation.evidence.Verifier` that uses the policy's reference values.

    Args:
        holder: has the policy.
        role: the party whose evidence is verified.
        configured: the configuration's reference values; None if it demands no evidence.
        make: makes a verifier with the configured roots and the given reference values.
    """

    def __init__(
        self,
        holder: PolicyHolder,
        *,
        role: Role,
        configured: ReferenceValues | None,
        make: Callable[[ReferenceValues], Verifier],
    ) -> None:
        self._holder = holder
        self._role = role
        self._make = make
        self._configured = None if configured is None else make(configured)
        self._demands_more = configured is not None and configured != ReferenceValues()
        self._values: ReferenceValues | None = None
        self._by_policy: Verifier | None = None

    @property
    def demands_evidence(self) -> bool:
        """Say whether the policy or the configuration demands evidence now."""
        return self._configured is not None or self._current() is not None

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        by_policy, configured = self._current(), self._configured
        claims: Claims | None = None
        if configured is not None and (by_policy is None or self._demands_more):
            claims = configured.verify(evidence, data=data, now=now)
        if by_policy is not None:
            claims = by_policy.verify(evidence, data=data, now=now)
        if claims is None:
            raise EvidenceError("there are no reference values to verify evidence by")
        return claims

    def _current(self) -> Verifier | None:
        policy = self._holder.newest
        values: ReferenceValues | None = None
        if policy is not None:
            by_role = policy.reference_values
            values = by_role.agents if self._role is Role.AGENTS else by_role.authorities
        if values != self._values:
            # Made first: after values that cannot be used, the earlier ones must not count.
            made = None if values is None else self._make(values)
            self._values, self._by_policy = values, made
        return self._by_policy
