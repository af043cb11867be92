"""Which roots are in the trust bundle: decisions only.

Owns the memory of roots: when the authority last vouched for each, and until when a leaf under it
can be valid. Invariants: there are at most :data:`~sds.pki.MAX_ROOTS` with
:data:`~sds.pki.MAX_BUNDLE_BYTES`, whatever an authority names; a root that the authority vouches
for is in the bundle before any leaf under it is served; a root that it no longer vouches for stays
until no leaf under it can be valid, ours or another node's, if each lives no longer than it was
asked for, and while a leaf under it is served; a root that has ended leaves at once (nothing under
it verifies), unless no root would be left or only a wall clock that is ahead says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sds.errors import AuthorityAnswerError
from sds.pki import MAX_BUNDLE_BYTES, MAX_ROOTS, fit_a_bundle, read_root

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from datetime import datetime, timedelta

    from sds.clock import Instant


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """One root of the bundle.

    Attributes:
        der: the certificate.
        fingerprint: the SHA-256 of the certificate, lower-case hex.
        not_after: the end of the root's own validity.
        until: that end in seconds of boot time, as it was expected when the root joined.
        vouched: when the authority last named it, in seconds of boot time: a wall clock that is
            ahead for a moment takes no root away, and leaves none behind.
        leaves_until: the end of our last leaf under it, at most as it was asked for; None if there
            was none yet. An authority that turned hostile may give leaves for years.
    """

    der: bytes = field(repr=False)
    fingerprint: str
    not_after: datetime
    until: float
    vouched: float
    leaves_until: datetime | None = None

    def is_over(self, now: Instant) -> bool:
        """Say whether it has ended by both clocks: the wall clock may be ahead for a moment."""
        return self.not_after <= now.wall and self.until <= now.boottime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Every root that is still needed, in the order in which they came."""

    roots: tuple[Root, ...] = ()

    @property
    def bundle(self) -> tuple[bytes, ...]:
        """Return all roots in DER."""
        return tuple(root.der for root in self.roots)

    def vouched(self, roots: Sequence[bytes], now: Instant) -> Ledger:
        """Note that the authority names these roots now; an empty answer changes nothing.

        Raises:
            AuthorityAnswerError: ``authority_roots``: with them, there would be too many.
            CertificateError: one of them cannot be read as a whole, or is not an authority.
        """
        named = {hashlib.sha256(der).hexdigest(): der for der in roots}
        known = {root.fingerprint: root.der for root in self.roots}
        together = known | named
        if not fit_a_bundle(together.values()):
            raise AuthorityAnswerError(
                f"the authority named {len(named.keys() - known)} new roots; with the "
                f"{len(known)} under which certificates may be valid, these are more than "
                f"{MAX_ROOTS}, or have more than {MAX_BUNDLE_BYTES} bytes",
                reason="authority_roots",
            )
        kept = tuple(
            dataclasses.replace(root, vouched=now.boottime) if root.fingerprint in named else root
            for root in self.roots
        )
        new = tuple(
            _joined(der, fingerprint, now)
            for fingerprint, der in named.items()
            if fingerprint not in known
        )
        return Ledger(roots=kept + new)

    def served(self, fingerprint: str, until: datetime) -> Ledger:
        """Note that a leaf under this root is served, which counts until then."""
        return Ledger(
            roots=tuple(
                dataclasses.replace(root, leaves_until=max(root.leaves_until or until, until))
                if root.fingerprint == fingerprint
                else root
                for root in self.roots
            )
        )

    def pruned(self, now: Instant, *, retention: timedelta, in_use: Collection[str] = ()) -> Ledger:
        """Return a ledger without the roots that are no longer needed.

        Args:
            now: the time.
            retention: how long a leaf that others got just before the authority stopped naming
                its root may still live: the longest lifetime in the trust domain.
            in_use: the fingerprints of the roots of the leaves that are served now.
        """
        if not self.roots:
            return self
        newest = max(root.vouched for root in self.roots)
        kept = tuple(
            root
            for root in self.roots
            if not root.is_over(now)
            and (root.fingerprint in in_use or _needed(root, newest, now, retention))
        )
        # An empty bundle would help nobody: the last roots stay until others come.
        return Ledger(roots=kept) if kept and len(kept) < len(self.roots) else self


def _joined(der: bytes, fingerprint: str, now: Instant) -> Root:
    not_after = read_root(der).not_valid_after_utc
    return Root(
        der=der,
        fingerprint=fingerprint,
        not_after=not_after,
        until=now.boottime + (not_after - now.wall).total_seconds(),
        vouched=now.boottime,
    )


def _needed(root: Root, newest: float, now: Instant, retention: timedelta) -> bool:
    # While the authority does not answer, its last answer counts: no root is known to have left.
    if root.vouched == newest or now.boottime < root.vouched + retention.total_seconds():
        return True
    return root.leaves_until is not None and now.wall < root.leaves_until
