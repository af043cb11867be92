"""The port for observers of policy.

A module of its own, so that an observer does not load what verifies a policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from sds.errors import PolicyError
    from sds.policy.trust import AdmittedPolicy


class PolicyWatcher(Protocol):
    """Wants to know what becomes of policy, for metrics."""

    def taken(self, policy: AdmittedPolicy, *, now: datetime) -> None:
        """This policy came into force."""
        ...

    def refused(self, error: PolicyError) -> None:
        """An offered policy was refused."""
        ...

    def ended(self) -> None:
        """The last good policy ended: none is in force."""
        ...
