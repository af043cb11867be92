"""The names of filter configurations, and the filter behind each name for one caller.

Owns the mapping from names to filters, and their versions. Invariants: the filter of a caller's own
identity always exists, and denies everything if no policy is in force or policy does not know the
identity; the filters of other identities do not exist for that caller; a version changes whenever
the content or the policy's epoch changes, and contains the epoch.

===============================  ===============================================================
name                             filter
===============================  ===============================================================
``authorization``                HTTP RBAC of the caller's first identity
``authorization-tcp``            network RBAC of it
``authorization:<SPIFFE ID>``    HTTP RBAC of the caller's identity of that SPIFFE ID
``authorization-tcp:<…>``        network RBAC of it; ``authorization:<…>-tcp`` means the same
===============================  ===============================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from sds.policy.authorized import Authorization
from sds.secrets.store import Version
from sds.serving import rbac
from sds.serving.bounded_cache import BoundedCache
from sds.serving.encode import Resource
from sds.serving.rbac import EXTENSION_TYPE
from sds.serving.subscription import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime

    from sds.clock import Clock
    from sds.identity import SpiffeId
    from sds.secrets.store import ResourceKey, SecretStore
    from sds.workload.entitlement import Caller

    Authorizations: TypeAlias = Mapping[SpiffeId, Authorization]
    """For each identity of a caller, which requests others may send to it."""

AUTHORIZATION: Final = "authorization"
AUTHORIZATION_TCP: Final = "authorization-tcp"
_TCP: Final = "-tcp"
DEFAULT_TTL: Final = timedelta(hours=1)
_SHORTEST_TTL: Final = timedelta(seconds=1)
_BEATS: Final = 3
"""How many heartbeats there are in a filter's life."""
_LEAST_BEAT_SECONDS: Final = 1.0
_STAMP_BYTES: Final = 4 * 1024 * 1024
_FILTER_BYTES: Final = 8 * 1024 * 1024
"""The most bytes of remembered versions and filters: pods with identities of their own come and
go."""
_ENTRY_BYTES: Final = 1024
"""Bytes of memory of one entry beside its name, its identity and its filter."""
_CONTENT: Final = 4
"""How much memory the rules behind a filter take, with the filter itself, in its sizes."""


class AuthorizationPolicy(Protocol):
    """Gives what policy allows; call ``SecretService.refresh()`` after a change."""

    def authorization(self, identity: SpiffeId, *, now: datetime) -> Authorization:
        """Return which requests others may send to the identity; none if no policy is in force."""
        ...


class _NoPolicy:
    def authorization(self, identity: SpiffeId, *, now: datetime) -> Authorization:
        """Deny everything."""
        del now
        return Authorization(identity=identity)


class ExtensionCatalog:
    """Finds the filter configurations of each caller.

    Args:
        store: draws versions.
        policy: decides; if it is None, every filter denies everything.
        clock: gives the time for which policy is asked.
        ttl: the longest life of a filter without a heartbeat.
        on_short: is told within how many seconds a heartbeat must follow a filter whose life is
            shorter, because the policy ends soon. If the clock is set back, it does not.
    """

    type_url: Final = EXTENSION_TYPE

    def __init__(
        self,
        store: SecretStore,
        *,
        policy: AuthorizationPolicy | None,
        clock: Clock,
        ttl: timedelta = DEFAULT_TTL,
        on_short: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._on_short = on_short
        self._policy: AuthorizationPolicy = policy if policy is not None else _NoPolicy()
        self._clock = clock
        self._ttl = ttl
        self._stamps: BoundedCache[tuple[bytes, Version]] = BoundedCache(_STAMP_BYTES)
        """The last version of each name and identity, and a digest of its content."""
        self._filters: BoundedCache[tuple[Authorization, Version, bytes]] = BoundedCache(
            _FILTER_BYTES
        )

    @property
    def heartbeat_seconds(self) -> float:
        """Return the seconds between two heartbeats."""
        return self._ttl.total_seconds() / _BEATS

    def everything(self, caller: Caller) -> tuple[str, ...]:
        return (AUTHORIZATION, AUTHORIZATION_TCP) if caller.identities else ()

    def find(self, caller: Caller, name: str, *, strong: bool = False) -> Resource | None:
        """Return the filter under ``name`` for ``caller``; None if the name is not the caller's."""
        del strong
        meant = _meant(caller, name)
        if meant is None:
            return None
        identity, tcp = meant
        allowed = self._policy.authorization(identity, now=self._clock.now().wall)
        version, encoded = self._stamped(name, allowed, tcp=tcp)
        if (ttl := self.ttl(allowed)) < self._ttl:
            self._on_short(max(_LEAST_BEAT_SECONDS, ttl.total_seconds() / _BEATS))
        return Resource(Receipt(name, version), encoded, type_url=EXTENSION_TYPE, ttl=ttl)

    def ttl(self, allowed: Authorization) -> timedelta:
        """Return how long the filter lives without a heartbeat: never beyond the policy's end."""
        if allowed.ends_at is None:
            return self._ttl
        return max(_SHORTEST_TTL, min(self._ttl, allowed.ends_at - self._clock.now().wall))

    @staticmethod
    def is_expected(caller: Caller, name: str) -> bool:
        """Return False: a filter exists from the start, and until then Envoy denies everything."""
        del caller, name
        return False

    def authorizations(self, caller: Caller) -> Authorizations:
        """Return which requests others may send to each identity of the caller."""
        now = self._clock.now().wall
        own = (identity.spiffe_id for identity in caller.identities)
        return {one: self._policy.authorization(one, now=now) for one in own}

    def names_of(self, caller: Caller, keys: Collection[ResourceKey]) -> list[str]:
        """Return no names: no filter depends on the store."""
        del caller, keys
        return []

    def reloaded_names(self, caller: Caller) -> list[str]:
        """Return no names: no filter depends on files."""
        del caller
        return []

    def first_names(self) -> Collection[str]:
        """Return no names: no filter must go before another."""
        return ()

    @staticmethod
    def is_by_policy(name: str) -> bool:
        """Return True: policy decides every filter."""
        del name
        return False

    @staticmethod
    def is_made_up(name: str) -> bool:
        """Return False: only the names of a caller's identities mean something."""
        del name
        return False

    def _stamped(self, name: str, allowed: Authorization, *, tcp: bool) -> tuple[Version, bytes]:
        """Return version and bytes, new ones if what is allowed or the policy's epoch changed."""
        scope = (name, allowed.identity)
        content = dataclasses.replace(allowed, ends_at=None)
        known = self._filters.get(scope)
        if known is not None and known[0] == content:
            return known[1:]
        make = rbac.tcp_filter if tcp else rbac.http_filter
        encoded = make(name, allowed)
        size = len(name) + len(str(allowed.identity)) + _ENTRY_BYTES
        version = self._stamp(scope, encoded, allowed.epoch, size)
        self._filters.put(scope, (content, version, encoded), _CONTENT * len(encoded) + size)
        return version, encoded

    def _stamp(self, scope: tuple[str, SpiffeId], encoded: bytes, epoch: int, size: int) -> Version:
        """Return the version of content that may have been dropped meanwhile and made again."""
        digest = hashlib.sha256(b"%d " % epoch + encoded).digest()
        known = self._stamps.get(scope)
        if known is not None and known[0] == digest:
            return known[1]
        run, _, number = self._store.draw_version().rpartition("-")
        version = Version(f"{run}-epoch{epoch}-{number}")
        self._stamps.put(scope, (digest, version), size)
        return version


class Widening:
    """Compares what is allowed before and after one change of policy, for all its callers.

    Many callers may have the same identities, so each answer is found once.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[Authorization, Authorization, bool]] = {}
        """By the objects themselves, which are kept so that no others get their numbers."""

    def only(self, before: Authorizations, after: Authorizations) -> bool:
        """Say whether everything that was allowed for any identity still is, by equal rules."""
        return before.keys() <= after.keys() and all(
            self._only_of(one, after[identity]) for identity, one in before.items()
        )

    def _only_of(self, before: Authorization, after: Authorization) -> bool:
        known = self._known.get((id(before), id(after)))
        if known is None:
            answer = before.enforced == after.enforced or _grants(before) <= _grants(after)
            known = self._known[id(before), id(after)] = (before, after, answer)
        return known[2]


def _grants(allowed: Authorization) -> frozenset[object]:
    return frozenset(
        (rule.trust_domain, glob, request)
        for rule in allowed.enforced
        for glob in rule.principals
        for request in rule.requests or (None,)
    )


def _meant(caller: Caller, name: str) -> tuple[SpiffeId, bool] | None:
    """Return the caller's identity that a name means, and whether it means the network filter."""
    if not caller.identities:
        return None
    kind, colon, wanted = name.partition(":")
    if kind not in (AUTHORIZATION, AUTHORIZATION_TCP):
        return None
    tcp = kind == AUTHORIZATION_TCP
    if not colon:
        return caller.identities[0].spiffe_id, tcp
    own = {str(identity.spiffe_id): identity.spiffe_id for identity in caller.identities}
    if wanted in own:
        return own[wanted], tcp
    if not tcp and wanted.endswith(_TCP) and wanted.removesuffix(_TCP) in own:
        return own[wanted.removesuffix(_TCP)], True
    return None
