"""Who may be at the other end of a connection: the seam between serving and policy.

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
    """One alternative: a URI SAN that matches admits the peer.

    Attributes:
        kind: how ``value`` is compared (Envoy's StringMatcher; ``regex`` is RE2, the whole name).
        value: the text.
    """

    kind: Literal["exact", "regex"]
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerContext:
    """Which peers a connection may have.

    Attributes:
        matchers: alternatives; an empty tuple admits nobody.
        trust_domains: whose bundles count; where any is foreign the SPIFFE validator is used.
    """

    matchers: tuple[SanMatcher, ...]
    trust_domains: tuple[TrustDomain, ...]


class PeerPolicy(Protocol):
    """Policy's answers about peers; after a change call ``SecretService.refresh()``."""

    def inbound(self, caller: Caller) -> PeerContext | None:
        """Who may connect to the caller; None if no policy speaks of it."""
        ...

    def outbound(self, caller: Caller, target: str) -> PeerContext | None:
        """Who may answer when the caller connects to ``target`` (a service or a SPIFFE ID)."""
        ...
