"""The order in which a new root comes into use: first the bundle, then leaves.

Owns the trust bundle of our own trust domain. Invariants: :meth:`RootRollover.introduced` returns
for a root only once every subscriber of the bundle has ACKed it and it has settled; if the bounded
wait for that ends first, the stragglers are logged; every wait ends before the replaced certificate
expires.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.clock import sleep_while
from sds.pki import complete_anchors
from sds.secrets.roots_ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta

    from sds.clock import Clock, Instant
    from sds.identity import TrustDomain
    from sds.pki import VerifiedChain
    from sds.secrets.schedule import Lease
    from sds.secrets.store import SecretStore, Version

_LOGGER = logging.getLogger(__name__)
_SETTLING_PART: Final = 0.2
"""The longest part of a certificate's time for which it is kept only because a root settles."""
_LAST_PART: Final = 0.05
_LAST_SECONDS: Final = 5.0
"""A certificate with less than this part of its time left, or these seconds, is replaced at once:
a root that other nodes may not know yet is better than a certificate that has ended."""
_LOOK_SECONDS: Final = 1.0
_NAMED: Final = 10
"""How many stragglers a log line names: clients choose how many there are."""


@dataclass(slots=True, kw_only=True)
class _Introduction:
    """A root that joined a bundle that already had others."""

    version: Version
    since: Instant
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked: Instant | None = None
    """When the first leaf under it began to wait for ACKs; the bound is for all leaves together."""
    acked: bool = False


def settling_left(held: Lease, since: Instant, now: Instant, *, settling_seconds: float) -> float:
    """Return how long a leaf under a new root still waits before it replaces a valid one.

    Args:
        held: the certificate that the leaf would replace.
        since: when the root was added to the bundle.
        now: the present time.
        settling_seconds: how long the root should be in the bundle, if the certificate lives long
            enough.

    Returns:
        The remaining seconds; 0 or less if the leaf waits no longer.
    """
    if held.is_premature(now):
        return 0.0  # the clock was set back, and peers refuse it
    patience = min(settling_seconds, _SETTLING_PART * held.span)
    return min(patience - (now.boottime - since.boottime), keeping_left(held, now))


def keeping_left(held: Lease, now: Instant) -> float:
    """Return for how many seconds a certificate can be kept beside a new one; may be negative."""
    return held.left(now) - min(_LAST_SECONDS, _LAST_PART * held.span)


class RootRollover:
    """Brings roots into the bundle and takes them out again.

    Args:
        trust_domain: the trust domain whose roots these are.
        store: where the bundle goes.
        clock: time.
        ack_seconds: how long a root waits for ACKs.
        settling_seconds: how long it is in the bundle before leaves under it replace others.
    """

    def __init__(
        self,
        trust_domain: TrustDomain,
        store: SecretStore,
        clock: Clock,
        *,
        ack_seconds: float,
        settling_seconds: float,
    ) -> None:
        self._trust_domain = trust_domain
        self._store = store
        self._clock = clock
        self._ack_seconds = ack_seconds
        self._settling_seconds = settling_seconds
        self._ledger = Ledger()
        self._introductions: dict[str, _Introduction] = {}

    def vouched(self, roots: Sequence[bytes], now: Instant) -> None:
        """Note that the authority names these roots: new ones join the bundle at once.

        Raises:
            AuthorityAnswerError: ``authority_roots``: there would be too many; nothing changed.
            CertificateError: ``certificate_malformed``: one of them is not a certificate; nothing
                changed.
        """
        before = {root.fingerprint for root in self._ledger.roots}
        self._ledger = self._ledger.vouched(roots, now)
        new = {root.fingerprint for root in self._ledger.roots} - before
        if not new:
            return
        version = self._store.put_bundle(self._trust_domain, self._ledger.bundle)
        complete = set(complete_anchors(self._ledger.bundle))
        partial = {root.fingerprint for root in self._ledger.roots if root.der not in complete}
        for fingerprint in sorted(new):
            _LOGGER.info(
                "new root %s in the bundle of %s",
                fingerprint[:16],
                self._trust_domain,
                extra={"root": fingerprint, "version": version},
            )
            if fingerprint in partial:
                self._warn_of_intermediate(fingerprint)
            if before:
                self._introductions[fingerprint] = _Introduction(version=version, since=now)

    def _warn_of_intermediate(self, fingerprint: str) -> None:
        _LOGGER.warning(
            "root %s of %s is an intermediate certificate: Envoy's SPIFFE validator cannot use "
            "it, so it is left out of 'ALL' and of every context with that validator",
            fingerprint[:16],
            self._trust_domain,
            extra={"root": fingerprint, "reason": "anchor_not_self_signed"},
        )

    async def introduced(self, fingerprint: str, *, held: Lease | None) -> None:
        """Wait until a leaf under this root may be served.

        Args:
            fingerprint: the root.
            held: the certificate that the leaf would replace: it can be kept a little longer, but
                not until it ends. Without one, the leaf waits for ACKs but not for settling.
        """
        introduction = self._introductions.get(fingerprint)
        if introduction is None:
            return
        if not introduction.acked:
            left = None if held is None else max(0.0, keeping_left(held, self._clock.now()))
            try:
                async with asyncio.timeout(left), introduction.turn:
                    await self._until_acked(fingerprint, introduction)
            except TimeoutError:
                _LOGGER.warning(
                    "a leaf under root %s is served before every subscription has ACKed the root: "
                    "the certificate that it replaces ends",
                    fingerprint[:16],
                    extra={"root": fingerprint},
                )
        if held is not None:
            await sleep_while(
                self._clock,
                lambda now: settling_left(
                    held, introduction.since, now, settling_seconds=self._settling_seconds
                ),
                look_seconds=_LOOK_SECONDS,
            )

    async def _until_acked(self, fingerprint: str, introduction: _Introduction) -> None:
        if introduction.acked:
            return
        now = self._clock.now()
        if introduction.asked is None:
            introduction.asked = now
        waited = now.boottime - introduction.asked.boottime
        stragglers = await self._store.until_acked(
            self._trust_domain,
            introduction.version,
            timeout_seconds=max(0.0, self._ack_seconds - waited),
        )
        introduction.acked = True
        if stragglers:
            _LOGGER.warning(
                "%d subscriptions have not ACKed root %s after %g s; its leaves are served anyway",
                len(stragglers),
                fingerprint[:16],
                self._ack_seconds,
                extra={"root": fingerprint, "stragglers": heapq.nsmallest(_NAMED, stragglers)},
            )

    def served(self, leaf: VerifiedChain, *, asked_until: datetime) -> None:
        """Note that a leaf is served; it keeps its root until its end, or the one asked for."""
        self._ledger = self._ledger.served(leaf.root, min(leaf.not_after, asked_until))

    def prune(self, now: Instant, *, retention: timedelta) -> None:
        """Take those roots out of the bundle under which no leaf can be valid any more."""
        before = self._ledger
        if not before.roots:
            return
        in_use = {stored.svid.root for stored in self._store.svids().values()}
        self._ledger = before.pruned(now, retention=retention, in_use=in_use)
        if self._ledger is before:
            return
        version = self._store.put_bundle(self._trust_domain, self._ledger.bundle)
        left = {root.fingerprint for root in self._ledger.roots}
        for root in before.roots:
            if root.fingerprint not in left:
                self._introductions.pop(root.fingerprint, None)
                _LOGGER.info(
                    "root %s left the bundle of %s: no leaf under it can be valid any more",
                    root.fingerprint[:16],
                    self._trust_domain,
                    extra={"root": root.fingerprint, "version": version},
                )
