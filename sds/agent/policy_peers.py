"""Answers serving's questions about peers from policy: with whom a workload may connect.

Owns the mapping from a policy's decisions to what serving puts into validation contexts
(:class:`sds.serving.peer_policy.PeerPolicy`). Invariants: without a policy in force, nobody is
admitted, never everybody; a target that policy does not know admits nobody, so that a service that
leaves the policy is taken from Envoys, which would keep a context that is merely no longer sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.identity import TrustDomain
from sds.rules.pattern import format_spiffe_pattern, spiffe_regex
from sds.serving.bounded_cache import BoundedCache
from sds.serving.peer_policy import PeerContext, SanMatcher

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sds.policy.decision import Decisions
    from sds.policy.holder import PolicyHolder
    from sds.rules.glob import Glob
    from sds.workload.entitlement import Caller

_MOST_BYTES: Final = 8 * 1024 * 1024
"""The most bytes of remembered contexts: pods with identities of their own come and go."""
_ENTRY_BYTES: Final = 512
_MATCHER_BYTES: Final = 128
"""Bytes of memory of an entry and of a matcher beside their texts."""


class PolicyPeers:
    """Implements :class:`sds.serving.peer_policy.PeerPolicy` from a :class:`PolicyHolder`.

    A context is computed once for each identity and service, and again when another policy is in
    force, or if those that were used since take all the memory that there is for them.
    """

    def __init__(self, holder: PolicyHolder) -> None:
        """Answer from ``holder``; after it reports a change, contexts must be refreshed."""
        self._holder = holder
        self._decisions: Decisions | None = None
        self._known: BoundedCache[PeerContext] = BoundedCache(_MOST_BYTES)

    def inbound(self, caller: Caller) -> PeerContext | None:
        """Say who may connect to the caller, as its first identity."""
        own = caller.identities[0].spiffe_id
        decisions = self._in_force()
        if decisions is None:
            return nobody(own.trust_domain)
        known = self._known.get((own,))
        if known is None:
            known = context(decisions.inbound(own), own.trust_domain)
            self._remember((own,), known)
        return known

    def outbound(self, caller: Caller, target: str) -> PeerContext | None:
        """Say who may answer when the caller, as its first identity, connects to ``target``."""
        own = caller.identities[0].spiffe_id
        decisions = self._in_force()
        if decisions is None:
            return nobody(own.trust_domain)
        if target not in decisions.services:  # clients make targets up, and such a one costs little
            return context(decisions.outbound(own, target), own.trust_domain)
        known = self._known.get((own, target))
        if known is None:
            known = context(decisions.outbound(own, target), own.trust_domain)
            self._remember((own, target), known)
        return known

    def _in_force(self) -> Decisions | None:
        policy = self._holder.current
        decisions = None if policy is None else policy.decisions
        if decisions is not self._decisions:
            self._decisions = decisions
            self._known.clear()
        return decisions

    def _remember(self, key: tuple[object, ...], value: PeerContext) -> None:
        texts = sum(len(each.value) + _MATCHER_BYTES for each in value.matchers)
        self._known.put(key, value, texts + _ENTRY_BYTES)


def nobody(trust_domain: TrustDomain) -> PeerContext:
    """Make a context that admits nobody."""
    return PeerContext(matchers=(), trust_domains=(trust_domain,))


def context(globs: Iterable[Glob], own: TrustDomain) -> PeerContext:
    """Make a context that admits exactly the SPIFFE IDs that match one of the patterns."""
    patterns = tuple(globs)
    if not patterns:
        return nobody(own)
    return PeerContext(
        matchers=tuple(_matcher(glob) for glob in patterns),
        trust_domains=tuple(sorted({TrustDomain(glob.parts[0]) for glob in patterns})),
    )


def _matcher(glob: Glob) -> SanMatcher:
    if glob.is_literal:
        return SanMatcher("exact", format_spiffe_pattern(glob))
    return SanMatcher("regex", spiffe_regex(glob))
