"""Reads the state and the readiness of a running agent into plain values.

Invariants: it only reads; it copies nothing secret (the model's types have no field for it).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import sds
from sds.agent.client_list import listed_clients
from sds.identity import Identity
from sds.operations.readiness import Readiness, agent_readiness
from sds.operations.state import (
    AgentState,
    BundleState,
    IdentityState,
    PolicyState,
    WorkloadState,
)
from sds.transport.usage import largest, strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sds.agent.sockets import WorkloadListening
    from sds.clock import Clock, Instant
    from sds.identity import TrustDomain
    from sds.operations.metrics.node import NodeConnections
    from sds.operations.state import PastError
    from sds.policy.holder import PolicyHolder
    from sds.secrets.hardening import MemoryProtection
    from sds.secrets.identity_status import IdentityStatus
    from sds.secrets.rotation import Rotation
    from sds.secrets.store import Change, SecretStore
    from sds.serving.service import SecretService
    from sds.transport.budget import Budgets
    from sds.workload.entitlement import Entitlement
    from sds.workload.minting_ahead import MintingAhead

_OWNERS: Final = 32
"""How many owners of connections the state names."""


class UnservedIdentities:
    """The identities of workloads with a socket of their own that have no certificate now.

    It follows the store and the policy, and looks only at what changed, because a start with a
    thousand identities asks a thousand times.
    """

    def __init__(self, entitlements: Sequence[Entitlement], store: SecretStore) -> None:
        self._entitlements = entitlements
        self._store = store
        self._wanted: frozenset[Identity] = frozenset()
        self._unserved: dict[Identity, None] = {}
        self._look()
        store.listen(self._on_change)
        for one in entitlements:
            one.listen(self._look)

    @property
    def spiffe_ids(self) -> list[str]:
        """Return their SPIFFE IDs."""
        return [str(one.spiffe_id) for one in self._unserved]

    def _look(self) -> None:
        wanted = [each for one in self._entitlements for each in one.current.identities]
        self._wanted = frozenset(wanted)
        self._unserved = {one: None for one in wanted if self._store.svid(one) is None}

    def _on_change(self, change: Change) -> None:
        for key in change.keys:
            if not isinstance(key, Identity) or key not in self._wanted:
                continue
            if self._store.svid(key) is None:
                self._unserved[key] = None
            else:
                self._unserved.pop(key, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LivingParts:
    """The running parts from which the state is read.

    Attributes:
        unserved: the identities of workloads with a socket of their own that have no certificate.
        authority: the address in use, or the configured ones.
        gives_news: whether the authority can be asked for its roots between renewals.
        sockets: the sockets of single workloads.
        node_socket: the path of the node-wide socket; empty without one.
        lost_sockets: paths of our sockets that are no longer ours.
        memory: the protections of memory, if they were tried.
        ahead: mints before callers ask, if configured.
        budgets: the budgets of connections' owners.
        node: counts connections of the node-wide socket, if there is one.
        warnings: what must not be overlooked.
        errors: the recent errors.
    """

    trust_domain: TrustDomain
    started: Instant
    clock: Clock
    store: SecretStore
    rotation: Rotation
    service: SecretService
    unserved: UnservedIdentities
    authority: Callable[[], str]
    gives_news: bool = False
    sockets: Sequence[WorkloadListening] = ()
    node_socket: str = ""
    policy: PolicyHolder | None = None
    memory: MemoryProtection | None = None
    ahead: MintingAhead | None = None
    budgets: Budgets | None = None
    node: NodeConnections | None = None
    lost_sockets: Callable[[], Sequence[str]] = field(default=tuple)
    warnings: Callable[[], Sequence[str]] = field(default=tuple)
    errors: Callable[[], Iterable[PastError]] = field(default=tuple)

    def identities(self) -> Sequence[IdentityStatus]:
        return self.rotation.status()

    def asks_authority(self) -> bool:
        return (self.gives_news and self.rotation.may_ask()) or any(
            one.wanted and (one.reason or one.not_after is None) for one in self.identities()
        )

    def refused_subscriptions(self) -> int:
        return sum(
            conversation.subscription.refused()
            for session in self.service.sessions()
            for stream in session.streams
            for conversation in stream.conversations.values()
        )

    def readiness(self) -> Readiness:
        """Say whether the agent does what its configuration asks for."""
        return agent_readiness(
            unserved=self.unserved.spiffe_ids,
            no_policy="" if self.policy is None else self.policy.absence,
            lost_sockets=self.lost_sockets(),
            draining=self.service.draining is not None,
        )

    def state(self) -> AgentState:
        """Return what the agent does at this moment."""
        now = self.clock.now()
        names = _callers(self.service)
        clients, unlisted = listed_clients(self.service)
        return AgentState(
            now=now.wall,
            started=self.started.wall,
            version=sds.__version__,
            pid=os.getpid(),
            trust_domain=self.trust_domain,
            readiness=self.readiness(),
            draining=self.service.draining is not None,
            authority=self.authority(),
            warnings=(*self.warnings(), *_left_out(unlisted)),
            identities=tuple(
                _identity(one, self.store, names.get(one.identity, ()))
                for one in self.rotation.status()
            ),
            workloads=tuple(_workloads(self.service, self.sockets, self.node_socket)),
            clients=clients,
            unlisted=unlisted,
            bundles=tuple(
                BundleState(
                    trust_domain=trust_domain,
                    version=stored.version,
                    roots=tuple(hashlib.sha256(der).hexdigest() for der in stored.bundle.roots),
                )
                for trust_domain, stored in sorted(self.store.bundles().items())
            ),
            policy=None if self.policy is None else _policy(self.policy),
            errors=tuple(self.errors()),
            owners=() if self.budgets is None else largest(self.budgets, _OWNERS),
            strangers=None if self.budgets is None else strangers(self.budgets),
            memory=self.memory,
        )


def _left_out(streams: int) -> tuple[str, ...]:
    return (f"{streams} more streams are open than are listed here",) if streams else ()


def _policy(holder: PolicyHolder) -> PolicyState:
    policy = holder.current
    return PolicyState(
        epoch=holder.epoch,
        digest=holder.digest.hex() if holder.epoch else "",
        not_after=None if policy is None else policy.not_after,
        problem="" if holder.last_error is None else str(holder.last_error),
    )


def _identity(one: IdentityStatus, store: SecretStore, workloads: Iterable[str]) -> IdentityState:
    stored = store.svid(one.identity)
    return IdentityState(
        spiffe_id=str(one.identity.spiffe_id),
        dns_names=one.identity.dns_names,
        workloads=tuple(sorted(workloads)),
        condition=one.condition,
        serial="" if one.serial is None else f"{one.serial:x}",
        version="" if stored is None else stored.version,
        not_after=one.not_after,
        received_at=None if stored is None else stored.svid.received_at,
        renew_at=one.renew_at if one.wanted else None,
        rotations=one.rotations,
        failed_attempts=one.attempts,
        reason=one.reason,
        message=one.message,
        wanted=one.wanted,
    )


def _callers(service: SecretService) -> dict[Identity, set[str]]:
    """Return the names of the workloads that are connected, by identity."""
    found: dict[Identity, set[str]] = {}
    for session in service.sessions():
        for identity in session.caller.identities:
            found.setdefault(identity, set()).add(session.caller.name)
    return found


def _workloads(
    service: SecretService, sockets: Sequence[WorkloadListening], node_socket: str
) -> Iterator[WorkloadState]:
    """Return every socket of the configuration, then every caller on the node's socket."""
    streams = {
        session.entitlement: len(session.streams)
        for session in service.sessions()
        if session.streams
    }
    for one in sockets:
        yield _workload(one.entitlement, one.path, streams.pop(one.entitlement, 0))
    for entitlement, number in streams.items():
        yield _workload(entitlement, node_socket, number)


def _workload(entitlement: Entitlement, socket: str, streams: int) -> WorkloadState:
    caller = entitlement.current
    return WorkloadState(
        name=caller.name,
        socket=socket,
        spiffe_ids=tuple(str(one.spiffe_id) for one in caller.identities),
        streams=streams,
    )
