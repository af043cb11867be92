"""The port for observers of policy.

It is a module of its own, so that an observer does not load the code that verifies policies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from sds.errors import PolicyError
    from sds.policy.trust import AdmittedPolicy


class PolicyWatcher(Protocol):
    """Is told what becomes of policy, for metrics."""

    def taken(self, policy: AdmittedPolicy, *, now: datetime) -> None:
        """Note that this policy came into force."""
        ...

    def refused(self, error: PolicyError) -> None:
        """Note that an offered policy was refused, or that its file cannot be read."""
        ...

    def ended(self) -> None:
        """Note that the last good policy ended, so none is in force."""
        ...
