"""TLS session ticket keys, made for each identity and replaced before they could outlive trust.

Anyone who has a ticket key can forge the session of any client, and a resumed session checks
neither expiry nor, with the SPIFFE validator, policy. So tickets are off unless configured, and
these invariants are for those that are on: keys of two identities are never the same; no key is
older than the shortest certificate lifetime; after a change of bundle, validation context or
policy no older key is left, and the new ones are pushed before the changed context.
Keys are newest first: Envoy encrypts with the first and decrypts with all
(``envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys``).
"""

from __future__ import annotations

import functools
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.clock import elapsed, sleep_while
from sds.secrets.key_memory import SecretBytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

    from sds.clock import Clock, Instant
    from sds.identity import Identity
    from sds.secrets.store import SecretStore, Version

KEY_BYTES: Final = 80
"""The length of a key in Envoy: 16 bytes of name, 32 of HMAC key, 32 of AES key."""
KEYS: Final = 4
"""How many keys an identity has: one that encrypts, and others that decrypt older tickets."""
_LEAST_SECONDS: Final = 4.0
"""However short a certificate lives, keys are replaced once a second at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketKey:
    """One key, and when it was made."""

    born: Instant
    key: SecretBytes = field(repr=False)


def rotated(
    keys: tuple[TicketKey, ...], new: SecretBytes, *, now: Instant, longest_life: float
) -> tuple[TicketKey, ...]:
    """Put ``new`` in front of ``keys``, without those that would be too old before the next call.

    Args:
        keys: newest first.
        new: the key that encrypts from now on.
        now: the time.
        longest_life: seconds after which no key may be in use.
    """
    interval = longest_life / KEYS
    young = (key for key in keys if elapsed(key.born, now) + interval <= longest_life)
    return (TicketKey(born=now, key=new), *young)[:KEYS]


class SessionTickets:
    """The ticket keys of the identities for which they are on.

    Args:
        store: draws versions, and has the certificates, whose authority may grant less than was
            asked for.
        identities: the identities for which tickets are on.
        longest_life: the shortest lifetime that is asked for: no key outlives it.
        clock: gives the age of keys.
    """

    def __init__(
        self,
        store: SecretStore,
        *,
        identities: Iterable[Identity],
        longest_life: timedelta,
        clock: Clock,
    ) -> None:
        self._store = store
        self._life = longest_life.total_seconds()
        self._clock = clock
        self._keys: dict[Identity, tuple[Version, tuple[TicketKey, ...]]] = {}
        for identity in identities:
            self._set(identity, ())

    def current(self, identity: Identity) -> tuple[Version, tuple[bytes, ...]] | None:
        """Return version and keys of 80 bytes, newest first; None if tickets are off."""
        found = self._keys.get(identity)
        if found is None:
            return None
        version, keys = found
        return version, tuple(key.key.reveal() for key in keys)

    def replace(self) -> None:
        """Make new keys for all and keep no old one, because trust changed."""
        for identity in self._keys:
            self._set(identity, ())

    def rotate(self) -> None:
        """Put a new key in front for all and drop the oldest, because time passed."""
        for identity, (_, keys) in list(self._keys.items()):
            self._set(identity, keys)

    async def run(self, changed: Callable[[], None]) -> None:
        """Rotate at intervals until cancelled, and call ``changed`` after each rotation."""
        while self._keys:
            await sleep_while(self._clock, functools.partial(self._left, self._clock.now()))
            self.rotate()
            changed()

    def _left(self, since: Instant, now: Instant) -> float:
        """Return the seconds until the next rotation, after one at ``since``."""
        return self._shortest() / KEYS - elapsed(since, now)

    def _shortest(self) -> float:
        """Return the shortest life of a certificate, in seconds."""
        svids = (stored.svid for stored in self._store.svids().values())
        lives = ((one.not_after - one.received_at).total_seconds() for one in svids)
        return min(self._life, max(_LEAST_SECONDS, min(lives, default=self._life)))

    def _set(self, identity: Identity, kept: tuple[TicketKey, ...]) -> None:
        now = self._clock.now()
        new = SecretBytes(secrets.token_bytes(KEY_BYTES))
        keys = rotated(kept, new, now=now, longest_life=self._shortest())
        before = self._keys.get(identity)
        self._keys[identity] = (self._store.draw_version(), keys)
        if before is not None:
            for old in before[1]:
                if old not in keys:
                    old.key.wipe()
