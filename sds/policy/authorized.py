"""What may be asked of one workload, as data.

Owns the types that policy fills and serving turns into Envoy's filters, and nothing that decides or
encodes. Invariant: no rule at all is a denial, never an absence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from sds.identity import SpiffeId, TrustDomain
    from sds.policy.requests import RequestPattern
    from sds.rules.glob import Glob


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRule:
    """One thing that is allowed.

    Attributes:
        name: for Envoy's statistics and access logs; unique within its list, and the same
            wherever the rule says the same.
        trust_domain: of every principal.
        principals: patterns of SPIFFE IDs; never empty.
        requests: what they may ask for; empty: everything.
    """

    name: str
    trust_domain: TrustDomain
    principals: tuple[Glob, ...]
    requests: tuple[RequestPattern, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """Everything that may be asked of one identity.

    Attributes:
        identity: the workload that is asked.
        enforced: what is allowed, in the order of names; empty: nothing.
        shadow: what would be allowed if every rule's requests were enforced; None if they are.
        epoch: of the policy; 0 if none is in force.
        ends_at: from this moment on everything is denied (aware); None if it is already.
    """

    identity: SpiffeId
    enforced: tuple[AuthorizationRule, ...] = ()
    shadow: tuple[AuthorizationRule, ...] | None = None
    epoch: int = 0
    ends_at: datetime | None = None
