"""The requests that one workload accepts, as data.

Owns the types that policy fills and serving turns into Envoy's filters; this module decides and
encodes nothing. Invariant: no rule at all is a denial, never an absence.
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
    """One rule that allows requests.

    Attributes:
        name: names the rule in Envoy's statistics and access logs; unique within its list, and
            equal for equal rules.
        trust_domain: the trust domain of every principal.
        principals: patterns of SPIFFE IDs; never empty.
        requests: the requests that they may send; empty allows every request.
    """

    name: str
    trust_domain: TrustDomain
    principals: tuple[Glob, ...]
    requests: tuple[RequestPattern, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """Everything that one identity accepts.

    Attributes:
        identity: the workload that is asked.
        enforced: the rules that allow, in the order of names; empty allows nothing.
        shadow: what would be allowed if every rule's requests were enforced; None if they are.
        epoch: the policy's epoch; 0 if none is in force.
        ends_at: the moment from which everything is denied (aware); None if everything is already.
    """

    identity: SpiffeId
    enforced: tuple[AuthorizationRule, ...] = ()
    shadow: tuple[AuthorizationRule, ...] | None = None
    epoch: int = 0
    ends_at: datetime | None = None
