"""The admin socket, which serves the agent's state to people and ``sds status``.

Owns the service ``sds.agent.v1.Agent``, which is the agent's state as protobuf. Invariants: it
shows public facts only (names, times, serials, versions, error texts); nothing can be changed
through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from sds._proto.sds.agent.v1 import agent_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from sds.operations.state import AgentState, ClientState, IdentityState
    from sds.secrets.hardening import MemoryProtection
    from sds.transport.usage import Usage

_MOST_TIMES: Final = 2**32 - 1
SERVICE: Final[str] = agent_pb2.DESCRIPTOR.services_by_name["Agent"].full_name


def handler(look: Callable[[], AgentState]) -> grpc.GenericRpcHandler:
    """Make the service's handler; ``look`` reads the state."""

    async def get_status(
        _request: agent_pb2.GetStatusRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> agent_pb2.Status:
        return encode(look())

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


def encode(state: AgentState) -> agent_pb2.Status:
    """Encode the state as the message for ``sds status``."""
    policy = state.policy
    return agent_pb2.Status(
        version=state.version,
        trust_domain=state.trust_domain,
        pid=state.pid,
        started_at=_timestamp(state.started),
        now=_timestamp(state.now),
        ready=state.readiness.ready,
        lacking=state.readiness.lacking,
        draining=state.draining,
        authority=state.authority,
        identities=[_identity(one) for one in state.identities],
        workloads=[
            agent_pb2.Workload(
                name=one.name,
                socket=one.socket,
                spiffe_id=one.spiffe_ids[0] if one.spiffe_ids else "",
                spiffe_ids=one.spiffe_ids,
                streams=one.streams,
            )
            for one in state.workloads
        ],
        clients=[_client(one) for one in state.clients],
        bundles=[
            agent_pb2.Bundle(trust_domain=one.trust_domain, version=one.version, roots=one.roots)
            for one in state.bundles
        ],
        notices=state.warnings,
        policy=None
        if policy is None
        else agent_pb2.Policy(
            epoch=policy.epoch,
            digest=policy.digest,
            not_after=_timestamp(policy.not_after),
            problem=policy.problem,
        ),
        memory=None if state.memory is None else _memory(state.memory),
        errors=[
            agent_pb2.PastError(
                at=_timestamp(one.at), about=one.about, reason=one.reason, message=one.words
            )
            for one in state.errors
        ],
        owners=map(_owner, state.owners),
        strangers=None if state.strangers is None else _owner(state.strangers),
    )


def _owner(one: Usage) -> agent_pb2.Owner:
    return agent_pb2.Owner(
        name=one.name,
        recognised=one.recognised,
        connections=one.connections,
        streams=one.streams,
        held_bytes=one.held_bytes,
        exceeded={limit: min(times, _MOST_TIMES) for limit, times in one.exceeded.items()},
    )


def _memory(memory: MemoryProtection) -> agent_pb2.Memory:
    return agent_pb2.Memory(
        no_dumps=_protection(memory.no_dumps),
        locked=_protection(memory.locked),
        wiped=_protection(memory.wiped),
    )


def _protection(why_not: str) -> agent_pb2.Protection:
    return agent_pb2.Protection(in_force=not why_not, why_not=why_not)


def _identity(one: IdentityState) -> agent_pb2.Identity:
    return agent_pb2.Identity(
        spiffe_id=one.spiffe_id,
        dns_names=one.dns_names,
        condition=one.condition,
        serial=one.serial,
        version=one.version,
        not_after=_timestamp(one.not_after),
        renew_at=_timestamp(one.renew_at),
        received_at=_timestamp(one.received_at),
        rotations=one.rotations,
        failed_attempts=one.failed_attempts,
        reason=one.reason,
        message=one.message,
        at_rest=not one.wanted,
    )


def _client(one: ClientState) -> agent_pb2.Client:
    return agent_pb2.Client(
        node=one.node,
        workload=one.workload,
        method=one.method,
        subscriptions=[
            agent_pb2.Subscription(
                name=each.name, version=each.version, state=each.state, message=each.error
            )
            for each in one.subscriptions
        ],
    )


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
