"""Who may be at the other end of a connection: the interface between serving and policy.

Owns the types that a policy fills. Invariant: a :class:`PeerContext` never widens trust by being
empty: no matcher admits nobody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from sds.identity import TrustDomain
    from sds.workload.entitlement import Caller


@dataclass(frozen=True, slots=True)
class SanMatcher:
    """A matcher that admits a peer by one of its URI SANs.

    Attributes:
        kind: how ``value`` is compared (Envoy's StringMatcher); ``regex`` is RE2 over the whole
            name.
        value: the text.
    """

    kind: Literal["exact", "regex"]
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerContext:
    """Which peers a connection may have.

    Attributes:
        matchers: a peer must match one of them; an empty tuple admits nobody.
        trust_domains: the trust domains whose bundles count; if one is foreign, the SPIFFE
            validator is used.
    """

    matchers: tuple[SanMatcher, ...]
    trust_domains: tuple[TrustDomain, ...]


class PeerPolicy(Protocol):
    """Gives what policy says about peers; call ``SecretService.refresh()`` after a change."""

    def inbound(self, caller: Caller) -> PeerContext | None:
        """Return who may connect to the caller; None if no policy mentions it."""
        ...

    def outbound(self, caller: Caller, target: str) -> PeerContext | None:
        """Return who may answer if the caller connects to ``target``, a service or a SPIFFE ID."""
        ...
