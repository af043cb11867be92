"""The meaning of a resource name for one caller, at this moment.

Owns the mapping from names to secrets, and the cache of their bytes, which is bounded because
clients make up names behind ``outbound:``. Invariants: a caller sees only what its recognition
permits; a name that it may not have looks like a name that does not exist yet (None); bundles of
more than one trust domain, and every foreign one, are sent as the SPIFFE validator only, because in
one ``trusted_ca`` any foreign CA could sign for our own trust domain; an intermediate certificate
as trust anchor is served in plain contexts only, because that validator cannot end a chain there.

==========================  ====================================================================
name                        secret
==========================  ====================================================================
``default``                 SVID of the caller's first identity
``spiffe://domain/path``    SVID of the caller's identity of that SPIFFE ID
``ROOTCA``                  bundle of the trust domain of the caller's first identity
``spiffe://domain``         bundle of that trust domain
``ALL``                     bundles of all trust domains in one SPIFFE validator
``inbound``                 bundles and SAN matchers of who may connect to the caller
``outbound:TARGET``         bundles and SAN matchers of who may answer for TARGET
``session_tickets``         TLS session ticket keys of the caller's first identity
as configured               generic secrets
==========================  ====================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from sds.errors import ConfigurationError, IdentityError
from sds.identity import Identity, SpiffeId
from sds.pki import complete_anchors
from sds.serving import encode
from sds.serving.bounded_cache import BoundedCache
from sds.serving.encode import Resource
from sds.serving.subscription import WILDCARD, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from sds.identity import TrustDomain
    from sds.secrets.store import ResourceKey, SecretStore, StoredBundle, TrustBundle, Version
    from sds.serving.peer_policy import PeerContext, PeerPolicy, SanMatcher
    from sds.serving.session_ticket_keys import SessionTickets
    from sds.workload.entitlement import Caller

    _Parts: TypeAlias = tuple[tuple[TrustDomain, Version], ...]
    """The versions of the bundles in a context."""

INBOUND: Final = "inbound"
OUTBOUND: Final = "outbound:"
_SCHEME: Final = "spiffe://"
_CONTEXT_BYTES: Final = 8 * 1024 * 1024
"""The most bytes of encoded validation contexts in the cache."""
_STAMP_BYTES: Final = 4 * 1024 * 1024
_ENCODINGS: Final = 3
"""How often a resource may be kept: alone, in a response, and in a delta response."""
_ENTRY_BYTES: Final = 1024
_STAMP_ENTRY_BYTES: Final = 400
"""Bytes of memory of one entry beside its content and its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aliases:
    """Short names, each a tuple of alternatives that all mean the same."""

    svid: tuple[str, ...] = ("default",)
    bundle: tuple[str, ...] = ("ROOTCA",)
    all_bundles: tuple[str, ...] = ("ALL",)
    session_tickets: tuple[str, ...] = ("session_tickets",)

    def __post_init__(self) -> None:
        """Check that every name means one thing, and that none hides a long name."""
        seen: set[str] = set()
        for name in (*self.svid, *self.bundle, *self.all_bundles, *self.session_tickets):
            if not name or name in (WILDCARD, INBOUND) or name.startswith((_SCHEME, OUTBOUND)):
                raise ConfigurationError(
                    f"secret name {name!r} cannot be an alias",
                    advice="an alias is not empty, not '*' or 'inbound', and starts neither with "
                    "'spiffe://' nor with 'outbound:'",
                )
            if name in seen:
                raise ConfigurationError(f"secret name {name!r} is an alias of two secrets")
            seen.add(name)

    def is_taken(self, name: str) -> bool:
        """Say whether the name is already an alias."""
        return name in (
            *self.svid,
            *self.bundle,
            *self.all_bundles,
            *self.session_tickets,
            INBOUND,
        ) or name.startswith((_SCHEME, OUTBOUND))


class GenericSecrets(Protocol):
    """The port to secrets from files, each for the workload for which it is configured."""

    def names(self, caller: Caller) -> Collection[str]:
        """Return the names of the secrets that the caller may have."""
        ...

    def current(self, caller: Caller, name: str) -> tuple[Version, bytes] | None:
        """Return version and value; None if there is none for the caller."""
        ...


class Catalog:
    """Finds the secret behind a name for a caller.

    Args:
        store: has the secrets.
        aliases: the short names.
        spiffe_validator: whether to serve our own trust domain's bundle as the SPIFFE validator
            too.
        peers: policy about peers; without it ``inbound`` and ``outbound:`` do not exist.
        tickets: gives session ticket keys; None if there are none.
        generic: gives generic secrets; None if there are none.
    """

    def __init__(
        self,
        store: SecretStore,
        *,
        aliases: Aliases,
        spiffe_validator: bool = False,
        peers: PeerPolicy | None = None,
        tickets: SessionTickets | None = None,
        generic: GenericSecrets | None = None,
    ) -> None:
        self.store = store
        self.aliases = aliases
        self._spiffe_validator = spiffe_validator
        self._peers = peers
        self._tickets = tickets
        self._generic = generic
        self._kinds: dict[str, Callable[[str, Caller, bool], Resource | None]] = {
            **dict.fromkeys(aliases.svid, self._default_svid),
            **dict.fromkeys(aliases.bundle, self._default_bundle),
            **dict.fromkeys(aliases.all_bundles, self._all_bundles),
            **dict.fromkeys(aliases.session_tickets, self._session_tickets),
        }
        self._svids: dict[Identity, dict[str, Resource]] = {}
        self._contexts: BoundedCache[Resource] = BoundedCache(_CONTEXT_BYTES)
        self._stamps: BoundedCache[tuple[bytes, Version]] = BoundedCache(_STAMP_BYTES)

    def forget_svid(self, identity: Identity) -> None:
        """Drop the bytes of the identity's SVID, which was replaced or withdrawn."""
        self._svids.pop(identity, None)

    def forget_contexts(self) -> None:
        """Drop the bytes of all validation contexts and all ticket keys, because trust changed."""
        self._contexts.clear()
        if self._tickets is not None:
            self._tickets.replace()

    # --- names ----------------------------------------------------------------------------------

    def everything(self, caller: Caller) -> tuple[str, ...]:
        """Return the long names of what exists, without aliases, ``ALL`` and session tickets."""
        svids = {
            str(identity.spiffe_id)
            for identity in caller.identities
            if self.store.svid(identity) is not None
        }
        bundles = (
            {_SCHEME + domain for domain in self.store.bundles()} if caller.identities else set()
        )
        generic = set(self._generic.names(caller)) if self._generic is not None else set()
        return tuple(sorted(svids | bundles | generic))

    def find(self, caller: Caller, name: str, *, strong: bool = False) -> Resource | None:
        """Return the secret of this name; ``strong`` asks for the SPIFFE validator."""
        if not caller.identities:
            return None
        kind = self._kinds.get(name)
        if kind is not None:
            return kind(name, caller, strong)
        if name.startswith(_SCHEME):
            return self._by_spiffe_id(name, caller, strong=strong)
        if self.is_by_policy(name):
            return self._by_policy(name, caller, strong=strong)
        return self._generic_secret(name, caller)

    def is_expected(self, caller: Caller, name: str) -> bool:
        """Say whether a name is one that this caller will have a secret under.

        These are the short names that every caller has, its own identities, and the bundles of
        their trust domains: so the answer tells a caller nothing of anybody else.
        """
        aliases = self.aliases
        if name in (*aliases.svid, *aliases.bundle, *aliases.all_bundles):
            return True
        if self.is_by_policy(name):
            return self._peers is not None
        own = (identity.spiffe_id for identity in caller.identities)
        return name.startswith(_SCHEME) and any(
            name in (str(one), _SCHEME + one.trust_domain) for one in own
        )

    def names_of(self, caller: Caller, keys: Collection[ResourceKey]) -> list[str]:
        found: list[str] = []
        for key in keys:
            if isinstance(key, Identity):
                if key in caller.identities:
                    found.append(str(key.spiffe_id))
                if caller.identities and key == caller.identities[0]:
                    found += self.aliases.svid
            else:
                found.append(_SCHEME + key)
                # Ticket keys are replaced with every bundle.
                found += self.aliases.session_tickets
                found += (*self.aliases.bundle, *self.aliases.all_bundles)
        return found

    def reloaded_names(self, caller: Caller) -> list[str]:
        generic = self._generic.names(caller) if self._generic is not None else ()
        return [*self.aliases.session_tickets, *generic]

    def first_names(self) -> Collection[str]:
        """Return the names of ticket keys: a changed context must not meet older tickets."""
        return self.aliases.session_tickets

    @staticmethod
    def is_by_policy(name: str) -> bool:
        return name == INBOUND or name.startswith(OUTBOUND)

    @staticmethod
    def is_made_up(name: str) -> bool:
        return name.startswith(OUTBOUND)

    # --- one kind each --------------------------------------------------------------------------

    def _default_svid(self, name: str, caller: Caller, _strong: bool) -> Resource | None:  # noqa: FBT001  # one signature for all aliases
        return self._svid(name, caller.identities[0])

    def _default_bundle(self, name: str, caller: Caller, strong: bool) -> Resource | None:  # noqa: FBT001  # one signature for all aliases
        domain = caller.identities[0].spiffe_id.trust_domain
        return self._bundle(name, caller, domain, strong=strong)

    def _by_policy(self, name: str, caller: Caller, *, strong: bool) -> Resource | None:
        if self._peers is None:
            return None
        context = (
            self._peers.inbound(caller)
            if name == INBOUND
            else self._peers.outbound(caller, name.removeprefix(OUTBOUND))
        )
        return self._context(name, caller, context, strong=strong)

    def _generic_secret(self, name: str, caller: Caller) -> Resource | None:
        current = self._generic.current(caller, name) if self._generic is not None else None
        if current is None:
            return None
        version, value = current
        return Resource(Receipt(name, version), encode.generic_secret(name, value))

    def _by_spiffe_id(self, name: str, caller: Caller, *, strong: bool) -> Resource | None:
        try:
            spiffe_id = SpiffeId.parse(name)
        except IdentityError:
            return None
        if not spiffe_id.path:
            return self._bundle(name, caller, spiffe_id.trust_domain, strong=strong)
        for identity in caller.identities:
            if identity.spiffe_id == spiffe_id:
                return self._svid(name, identity)
        return None

    def _svid(self, name: str, identity: Identity) -> Resource | None:
        stored = self.store.svid(identity)
        if stored is None:
            return None
        named = self._svids.setdefault(identity, {})
        resource = named.get(name)
        if resource is None or resource.receipt.version != stored.version:
            svid = stored.svid
            resource = named[name] = Resource(
                Receipt(name, stored.version, ((identity, stored.version),)),
                encode.tls_certificate(name, svid.chain, svid.private_key.reveal()),
            )
        return resource

    def _bundle(
        self, name: str, caller: Caller, domain: TrustDomain, *, strong: bool
    ) -> Resource | None:
        stored = self.store.bundle(domain)
        if stored is None:
            return None
        own = any(identity.spiffe_id.trust_domain == domain for identity in caller.identities)
        strong = strong or self._spiffe_validator or not own
        key = (domain, name, stored.version, strong)
        resource = self._contexts.get(key)
        if resource is None:
            encoded = _encoded(name, [stored.bundle], strong=strong)
            if encoded is None:
                return None
            receipt = Receipt(name, stored.version, ((domain, stored.version),))
            resource = self._keep(key, Resource(receipt, encoded))
        return resource

    def _all_bundles(self, name: str, _caller: Caller, _strong: bool) -> Resource | None:  # noqa: FBT001  # one signature for all aliases
        bundles = self.store.bundles()
        if not bundles:
            return None
        parts = _parts(bundles)
        key = ("all", name, parts)
        resource = self._contexts.get(key)
        if resource is None:
            encoded = _encoded(name, [one.bundle for one in bundles.values()], strong=True)
            if encoded is None:
                return None
            receipt = Receipt(name, self._stamp((name,), parts), parts)
            resource = self._keep(key, Resource(receipt, encoded))
        return resource

    def _context(
        self, name: str, caller: Caller, context: PeerContext | None, *, strong: bool
    ) -> Resource | None:
        if context is None:
            return None
        bundles = {
            domain: stored
            for domain in context.trust_domains
            if (stored := self.store.bundle(domain)) is not None
        }
        if not bundles:
            return None
        parts = _parts(bundles)
        own = caller.identities[0].spiffe_id.trust_domain
        # Also while a foreign bundle is missing: our roots vouch for no foreign name meanwhile.
        strong = strong or self._spiffe_validator or set(context.trust_domains) != {own}
        scope = (name, caller.identities)
        key = (*scope, context.matchers, parts, strong)
        resource = self._contexts.get(key)
        if resource is None:
            trusted = [stored.bundle for stored in bundles.values()]
            encoded = _encoded(name, trusted, strong=strong, matchers=context.matchers)
            if encoded is None:
                return None
            if not context.matchers and set(bundles) == {own}:
                version = bundles[
                    own
                ].version  # it admits nobody, so it changes with the bundle alone
            else:
                version = self._stamp(scope, parts, context.matchers)
            resource = self._keep(key, Resource(Receipt(name, version, parts), encoded))
        return resource

    def _keep(self, key: tuple[object, ...], resource: Resource) -> Resource:
        size = _ENCODINGS * (resource.size + len(resource.receipt.name)) + _ENTRY_BYTES
        self._contexts.put(key, resource, size)
        return resource

    def _session_tickets(self, name: str, caller: Caller, _strong: bool) -> Resource | None:  # noqa: FBT001  # one signature for all aliases
        identity = caller.identities[0]
        current = self._tickets.current(identity) if self._tickets is not None else None
        if current is None:
            return None
        version, keys = current
        return Resource(Receipt(name, version), encode.session_ticket_keys(name, keys))

    def _stamp(
        self, scope: tuple[object, ...], parts: _Parts, matchers: Iterable[SanMatcher] = ()
    ) -> Version:
        """Return the version of content made of several stored things: new content, new version."""
        # A digest is remembered, because matchers may take far more memory than the name.
        texts = [repr(parts), *(f"{one.kind} {len(one.value)} {one.value}" for one in matchers)]
        digest = hashlib.sha256("\n".join(texts).encode()).digest()
        known = self._stamps.get(scope)
        if known is not None and known[0] == digest:
            return known[1]
        version = self.store.draw_version()
        size = sum(len(part) for part in scope if isinstance(part, str)) + _STAMP_ENTRY_BYTES
        self._stamps.put(scope, (digest, version), size)
        return version


def _encoded(
    name: str,
    bundles: list[TrustBundle],
    *,
    strong: bool,
    matchers: tuple[SanMatcher, ...] | None = None,
) -> bytes | None:
    """Encode a validation context; None if no bundle has an anchor that its validator can use."""
    if not strong:
        return encode.trusted_ca(name, bundles[0], matchers)
    whole = [
        dataclasses.replace(bundle, roots=roots)
        for bundle in bundles
        if (roots := complete_anchors(bundle.roots))
    ]
    return encode.spiffe_validator(name, whole, matchers) if whole else None


def _parts(
    bundles: Mapping[TrustDomain, StoredBundle],
) -> _Parts:
    return tuple(sorted((domain, stored.version) for domain, stored in bundles.items()))


def newest(versions: Iterable[str]) -> str:
    """Return the newest of the store's versions."""
    return max(versions, key=lambda version: int(version.rpartition("-")[2]))
