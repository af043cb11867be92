"""Answers serving's questions about requests from policy: what each workload accepts.

Owns the answers of :class:`sds.serving.extensions.AuthorizationPolicy`. Invariant: without a policy
in force, and from the end of the last one on, everything is denied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.policy.authorization import authorization_of
from sds.policy.authorized import Authorization

if TYPE_CHECKING:
    from datetime import datetime

    from sds.identity import SpiffeId
    from sds.policy.holder import PolicyHolder
    from sds.policy.trust import AdmittedPolicy

_MAX_REMEMBERED: Final = 10_000


class PolicyAuthorizations:
    """The requests that the policy in force allows, computed once for each identity and policy.

    Args:
        holder: has the policy. Call ``SecretService.refresh()`` after it reports a change.
    """

    def __init__(self, holder: PolicyHolder) -> None:
        self._holder = holder
        self._policy: AdmittedPolicy | None = None
        self._known: dict[SpiffeId, Authorization] = {}

    def authorization(self, identity: SpiffeId, *, now: datetime) -> Authorization:
        """Return which requests others may send to the identity now."""
        policy = self._holder.current
        if policy is None or now >= policy.not_after:
            return Authorization(identity=identity)
        if policy is not self._policy:
            self._policy = policy
            self._known.clear()
        known = self._known.get(identity)
        if known is None:
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            # It came into force at its time, and stays so if the clock is set back after that.
            moment = max(now, policy.not_before)
            known = self._known[identity] = authorization_of(policy, identity, now=moment)
        return known
