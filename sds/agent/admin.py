"""The admin socket: what the agent tells people and ``sds status``.

Owns the service ``sds.agent.v1.Agent``. Invariant: public facts only (names, times, serials,
versions, errors in words); nothing can be changed through it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

import sds
from sds._proto.sds.agent.v1 import agent_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sds.clock import Clock
    from sds.identity import TrustDomain
    from sds.secrets.hardening import MemoryProtection
    from sds.secrets.rotation import IdentityStatus, Rotation
    from sds.secrets.store import SecretStore

SERVICE: Final[str] = agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name


class WorkloadSocket(Protocol):
    """A workload's socket, as far as it is shown."""

    @property
    def name(self) -> str:
        """The workload."""
        ...

    @property
    def path(self) -> str:
        """Where it is."""
        ...

    @property
    def spiffe_id(self) -> str:
        """Whose it is."""
        ...

    @property
    def streams(self) -> int:
        """Open streams."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the facts come from."""

    trust_domain: TrustDomain
    rotation: Rotation
    store: SecretStore
    clock: Clock
    started_at: datetime
    authority: Callable[[], str]
    workloads: Callable[[], Sequence[WorkloadSocket]]
    draining: Callable[[], bool]
    notices: Callable[[], Sequence[str]]
    memory: MemoryProtection | None = None


def handler(sources: Sources) -> grpc.GenericRpcHandler:
    """The service's handler."""

    async def get_status(
        _request: agent_pb2.GetStatusRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> agent_pb2.Status:
        return status(sources)

    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "GetStatus": grpc.unary_unary_rpc_method_handler(
                get_status,
                request_deserializer=agent_pb2.GetStatusRequest.FromString,
                response_serializer=agent_pb2.Status.SerializeToString,
            )
        },
    )


def status(sources: Sources) -> agent_pb2.Status:
    """The agent at this moment."""
    memory = sources.memory
    return agent_pb2.Status(
        version=sds.__version__,
        trust_domain=sources.trust_domain,
        pid=os.getpid(),
        started_at=_timestamp(sources.started_at),
        now=_timestamp(sources.clock.now().wall),
        ready=sources.rotation.ready,
        draining=sources.draining(),
        authority=sources.authority(),
        identities=[_identity(one, sources.store) for one in sources.rotation.status()],
        workloads=[
            agent_pb2.Workload(
                name=one.name, socket=one.path, spiffe_id=one.spiffe_id, streams=one.streams
            )
            for one in sources.workloads()
        ],
        bundles=[
            agent_pb2.Bundle(
                trust_domain=trust_domain,
                version=stored.version,
                roots=[hashlib.sha256(der).hexdigest() for der in stored.bundle.roots],
            )
            for trust_domain, stored in sorted(sources.store.bundles().items())
        ],
        notices=(*memory.missing(), *sources.notices()) if memory else sources.notices(),
        memory=_memory(memory) if memory else None,
    )


def _memory(memory: MemoryProtection) -> agent_pb2.Memory:
    return agent_pb2.Memory(
        no_dumps=_protection(memory.no_dumps),
        locked=_protection(memory.locked),
        wiped=_protection(memory.wiped),
    )


def _protection(why_not: str) -> agent_pb2.Protection:
    return agent_pb2.Protection(in_force=not why_not, why_not=why_not)


def _identity(one: IdentityStatus, store: SecretStore) -> agent_pb2.Identity:
    stored = store.svid(one.identity)
    return agent_pb2.Identity(
        spiffe_id=str(one.identity.spiffe_id),
        dns_names=one.identity.dns_names,
        condition=one.condition,
        serial="" if one.serial is None else f"{one.serial:x}",
        version="" if stored is None else stored.version,
        not_after=_timestamp(one.not_after),
        renew_at=_timestamp(one.renew_at),
        received_at=_timestamp(stored.svid.received_at if stored else None),
        rotations=one.rotations,
        failed_attempts=one.attempts,
        reason=one.reason,
        message=one.message,
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
