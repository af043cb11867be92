"""Verifies evidence by the reference values of the policy in force and of the configuration.

Owns the choice of reference values at each verification. Invariants: if the policy names values for
the role, they decide; if the configuration names some too, both must accept; a change of policy
applies from the next verification on.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from sds.attestation.reference_values import ReferenceValues
from sds.errors import PolicyNotInForceError

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
    """A :class:`sds.attestation.evidence.Verifier` that uses the policy in force.

    Args:
        holder: has the policy in force.
        role: the party whose evidence is verified.
        configured: the configuration's reference values.
        make: makes a verifier with the configured roots and the given reference values.
    """

    def __init__(
        self,
        holder: PolicyHolder,
        *,
        role: Role,
        configured: ReferenceValues,
        make: Callable[[ReferenceValues], Verifier],
    ) -> None:
        self._holder = holder
        self._role = role
        self._make = make
        self._configured = make(configured)
        self._demands_more = configured != ReferenceValues()
        self._values: ReferenceValues | None = None
        self._by_policy: Verifier | None = None

    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        """Verify evidence by the policy's and the configuration's reference values.

        Raises:
            EvidenceError: the reason names the first check that failed.
        """
        by_policy = self._current()
        if by_policy is None:
            return self._configured.verify(evidence, data=data, now=now)
        if self._demands_more:
            self._configured.verify(evidence, data=data, now=now)
        return by_policy.verify(evidence, data=data, now=now)

    def _current(self) -> Verifier | None:
        try:
            by_role = self._holder.in_force().reference_values
        except PolicyNotInForceError:
            return None
        values = by_role.agents if self._role is Role.AGENTS else by_role.authorities
        if values != self._values:
            self._values = values
            self._by_policy = None if values is None else self._make(values)
        return self._by_policy
