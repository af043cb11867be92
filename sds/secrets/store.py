"""The store: current secrets, and what each subscription was sent, ACKed and released.

Rotation writes secrets and asks two questions: has every live subscription of a bundle ACKed
version V, and may anyone still use key K? Serving reads secrets, listens for changes and reports
deliveries. The two never import each other: they meet here.

Invariants: one writer per identity; a value once put is immutable; a version of one resource
never repeats, also not between two runs of the agent; a put of equal content changes nothing and
tells nobody. Everything runs on one event loop; nothing blocks or awaits except the bounded wait
for ACKs.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NewType

from sds.identity import Identity, TrustDomain
from sds.listeners import Listeners
from sds.secrets.subscription_books import SubscriptionBooks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from datetime import datetime

    from sds.secrets.key_memory import SecretBytes

Version = NewType("Version", str)
SubscriptionId = NewType("SubscriptionId", int)
ResourceKey = Identity | TrustDomain
"""The subject of a delivery: an SVID by its identity, or a bundle by its trust domain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Svid:
    """A verified X.509-SVID with its private key.

    Attributes:
        identity: the identity that it was requested for; the SVID's key in the store.
        chain: DER, leaf first, intermediates after it, no root.
        private_key: PKCS#8 PEM in a buffer of its own.
        key_id: SHA-256 of the leaf's SubjectPublicKeyInfo, lower-case hex.
        serial: the leaf's serial number.
        not_before: the leaf's, aware, UTC.
        not_after: the end of its path, the earliest not-after in it with the root's, aware, UTC.
        received_at: wall time at which the authority's answer arrived.
        root: SHA-256 of the DER of the root that it verifies under, lower-case hex.
    """

    identity: Identity
    chain: tuple[bytes, ...] = field(repr=False)
    private_key: SecretBytes = field(repr=False)
    key_id: str
    serial: int
    not_before: datetime
    not_after: datetime
    received_at: datetime
    root: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustBundle:
    """The roots of one trust domain, in DER, sorted and without repeats."""

    trust_domain: TrustDomain
    roots: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSvid:
    """An SVID and the version under which it is served."""

    version: Version
    svid: Svid


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBundle:
    """A bundle and the version under which it is served."""

    version: Version
    bundle: TrustBundle


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The resources that one put or withdrawal changed."""

    keys: frozenset[ResourceKey]


class SecretStore:
    """The current secrets, and what each subscription may still use."""

    def __init__(self) -> None:
        self._run_id = secrets.token_hex(6)
        """Makes versions unique between two runs of the agent."""
        self._counter = itertools.count(1)
        self._svids: dict[Identity, StoredSvid] = {}
        self._bundles: dict[TrustDomain, StoredBundle] = {}
        self._listeners: Listeners[[Change]] = Listeners("store listener")
        self._subscription_ids = itertools.count(1)
        self._books = SubscriptionBooks()
        self._delivered: asyncio.Event | None = None
        """Set when a subscription lets a version go; it exists only while somebody waits for it."""

    # --- rotation writes ------------------------------------------------------------------------

    def put_svid(self, svid: Svid) -> Version:
        """Make ``svid`` the current one of its identity, and return its version."""
        version = self.draw_version()
        self._svids[svid.identity] = StoredSvid(version=version, svid=svid)
        self._tell(svid.identity)
        return version

    def withdraw_svid(self, identity: Identity) -> None:
        """Stop serving the identity's SVID (it expired, or is no longer wanted)."""
        if self._svids.pop(identity, None) is not None:
            self._tell(identity)

    def put_bundle(self, trust_domain: TrustDomain, roots: Iterable[bytes]) -> Version:
        """Make these DER roots the trust domain's bundle; an equal bundle keeps its version."""
        bundle = TrustBundle(trust_domain=trust_domain, roots=tuple(sorted(set(roots))))
        stored = self._bundles.get(trust_domain)
        if stored is not None and stored.bundle == bundle:
            return stored.version
        version = self.draw_version()
        self._bundles[trust_domain] = StoredBundle(version=version, bundle=bundle)
        self._tell(trust_domain)
        return version

    def withdraw_bundle(self, trust_domain: TrustDomain) -> None:
        """Stop serving a (foreign) trust domain's bundle."""
        if self._bundles.pop(trust_domain, None) is not None:
            self._tell(trust_domain)

    # --- serving reads --------------------------------------------------------------------------

    def svid(self, identity: Identity) -> StoredSvid | None:
        """Return the identity's current SVID."""
        return self._svids.get(identity)

    def bundle(self, trust_domain: TrustDomain) -> StoredBundle | None:
        """Return the trust domain's current bundle."""
        return self._bundles.get(trust_domain)

    def svids(self) -> Mapping[Identity, StoredSvid]:
        """Return all current SVIDs, as a read-only view that follows changes."""
        return MappingProxyType(self._svids)

    def bundles(self) -> Mapping[TrustDomain, StoredBundle]:
        """Return all current bundles, as a read-only view that follows changes."""
        return MappingProxyType(self._bundles)

    def listen(self, listener: Callable[[Change], None]) -> Callable[[], None]:
        """Call ``listener`` after every change until the returned function is called.

        The listener runs inside the put, on the event loop, so it must be short. If it raises, the
        error is reported and ends nothing.
        """
        return self._listeners.add(listener)

    def draw_version(self) -> Version:
        """Return a version that was never given before, for content derived from the store."""
        return Version(f"{self._run_id}-{next(self._counter)}")

    # --- serving reports deliveries -------------------------------------------------------------

    def open_subscription(self) -> SubscriptionId:
        """Begin the books of a new stream; end them with :meth:`close_subscription`."""
        subscription = SubscriptionId(next(self._subscription_ids))
        self._books.open(subscription)
        return subscription

    def close_subscription(self, subscription: SubscriptionId) -> None:
        """Close the books of a stream that ended; what it was sent no longer counts."""
        self._books.close(subscription)
        self._wake()

    def sent(self, subscription: SubscriptionId, key: ResourceKey, version: Version) -> None:
        """Note that a response with this version was given to the stream's transport."""
        held = self._svids.get(key) if isinstance(key, Identity) else None
        key_id = held.svid.key_id if held and held.version == version else ""
        self._books.sent(subscription, key, version, key_id)

    def acked(self, subscription: SubscriptionId, key: ResourceKey, version: Version) -> None:
        """Note an ACK of this version: the subscriber has let go of every earlier version."""
        if self._books.acked(subscription, key, version):
            self._wake()

    def keep_only(
        self, subscription: SubscriptionId, parts: Collection[tuple[ResourceKey, Version]]
    ) -> None:
        """Note that the subscriber, which took the last answer, uses nothing but these."""
        if self._books.keep_only(subscription, parts):
            self._wake()

    def nacked(self, subscription: SubscriptionId, key: ResourceKey, version: Version) -> None:
        """Note a NACK of this version: the subscriber goes on using what it ACKed before."""
        self._books.nacked(subscription, key, version)

    # --- rotation asks --------------------------------------------------------------------------

    def stragglers(self, trust_domain: TrustDomain, version: Version) -> frozenset[SubscriptionId]:
        """Return the bundle's live subscriptions that ACKed neither ``version`` nor a later one."""
        return self._books.stragglers(trust_domain, version)

    def subscription_count(self) -> int:
        """Return how many names streams subscribe to, over all streams."""
        return len(self._books)

    def held_keys(self) -> frozenset[str]:
        """Return the ids of all keys that any live subscription may still use."""
        return self._books.held_keys()

    async def until_acked(
        self, trust_domain: TrustDomain, version: Version, *, timeout_seconds: float
    ) -> frozenset[SubscriptionId]:
        """Wait at most ``timeout_seconds`` until no straggler is left, and return who is left."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self._books.lags(trust_domain, version):
                    if self._delivered is None:
                        self._delivered = asyncio.Event()
                    await self._delivered.wait()
        except TimeoutError:
            return self.stragglers(trust_domain, version)
        return frozenset()

    # --- inside ---------------------------------------------------------------------------------

    def _tell(self, key: ResourceKey) -> None:
        self._listeners.tell(Change(keys=frozenset({key})))

    def _wake(self) -> None:
        """Let every waiter look again; each waits for the event that is current when it looks."""
        delivered, self._delivered = self._delivered, None
        if delivered is not None:
            delivered.set()
