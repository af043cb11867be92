"""Answers serving's questions about requests from policy: what each workload accepts.

Owns the answers of :class:`sds.serving.extension_catalog.AuthorizationPolicy`. Invariant: without a
policy in force, and from the end of the last one on, everything is denied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.policy.authorization import authorization_of
from sds.policy.authorized import Authorization
from sds.serving.bounded_cache import BoundedCache

if TYPE_CHECKING:
    from datetime import datetime

    from sds.identity import SpiffeId
    from sds.policy.holder import PolicyHolder
    from sds.policy.trust import AdmittedPolicy

_MOST_BYTES: Final = 4 * 1024 * 1024
"""The most bytes that are remembered: pods with identities of their own come and go."""
_ENTRY_BYTES: Final = 512
_PART_BYTES: Final = 16
"""Bytes of memory of an answer or a rule, and of each pattern in a rule; the policy has those."""


class PolicyAuthorizations:
    """The requests that the policy in force allows, remembered for those who asked last.

    Args:
        holder: has the policy. Call ``SecretService.refresh()`` after it reports a change.
    """

    def __init__(self, holder: PolicyHolder) -> None:
        self._holder = holder
        self._policy: AdmittedPolicy | None = None
        self._known: BoundedCache[Authorization] = BoundedCache(_MOST_BYTES)

    def authorization(self, identity: SpiffeId, *, now: datetime) -> Authorization:
        policy = self._holder.current
        if policy is None or now >= policy.not_after:
            return Authorization(identity=identity)
        if policy is not self._policy:
            self._policy = policy
            self._known.clear()
        known = self._known.get(identity)
        if known is None:
            # It came into force at its time, and stays so if the clock is set back after that.
            moment = max(now, policy.not_before)
            known = authorization_of(policy, identity, now=moment)
            self._known.put(identity, known, _size(known))
        return known


def _size(allowed: Authorization) -> int:
    """Return the bytes of memory that an answer takes beside the policy's own."""
    rules = (*allowed.enforced, *(allowed.shadow or ()))
    return _ENTRY_BYTES + sum(_ENTRY_BYTES + _PART_BYTES * len(rule.principals) for rule in rules)
