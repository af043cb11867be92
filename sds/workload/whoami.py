"""What a caller is told about itself, over the socket that it uses.

Owns the service ``sds.workload.v1.Whoami``. Invariant: the answer holds what was found about the
calling process and what it got for it; no rule's condition, and nothing about any other caller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc

from sds._proto.sds.workload.v1 import whoami_pb2
from sds.errors import WorkloadError
from sds.workload.mapping import MatchedRule

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from sds.workload.entitlement import Entitlement, Selector
    from sds.workload.front_door import FrontDoor

SERVICE: Final = "sds.workload.v1.Whoami"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerDescription:
    """What is known about a caller.

    Attributes:
        name: what people call it.
        pid: 0 where the socket alone decides.
        selectors: what was found.
        granted: the identities with the rules that gave them; the first is ``default``.
        state: ``recognised``, ``no_match`` or ``undetermined``.
        why: in words.
    """

    name: str
    pid: int
    selectors: frozenset[Selector]
    granted: tuple[MatchedRule, ...]
    state: str
    why: str


class Describer(Protocol):
    """Finds out what to tell the caller behind a connection."""

    async def describe(self, context: Any) -> CallerDescription:
        """The description of the caller behind a call's context.

        Raises:
            WorkloadError: there is no such caller.
        """
        ...


class DoorDescriber:
    """Describes callers of a front door."""

    def __init__(self, door: FrontDoor) -> None:
        """``door``: whose callers are described."""
        self._door = door

    async def describe(self, context: Any) -> CallerDescription:
        return await self._door.recognition(context).describe()


class SocketDescriber:
    """Describes callers of a socket that decides alone."""

    def __init__(self, entitlement: Entitlement) -> None:
        """``entitlement``: what everybody on the socket may have."""
        self._entitlement = entitlement

    async def describe(self, context: Any) -> CallerDescription:
        del context
        caller = self._entitlement.current
        return CallerDescription(
            name=caller.name,
            pid=caller.pid or 0,
            selectors=caller.selectors,
            granted=tuple(MatchedRule(rule="", identity=each) for each in caller.identities),
            state="recognised",
            why="this socket belongs to this workload: whoever can open it is that workload",
        )


class WhoamiService:
    """Serves :data:`SERVICE`."""

    def __init__(self, describer: Describer) -> None:
        """``describer`` knows the callers of this server."""
        self._describer = describer

    def handler(self) -> grpc.GenericRpcHandler:
        """The handler for a ``grpc.aio`` server."""
        method = grpc.unary_unary_rpc_method_handler(
            self.describe,
            request_deserializer=whoami_pb2.DescribeRequest.FromString,
            response_serializer=whoami_pb2.DescribeResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Describe": method})

    async def describe(
        self, request: Message, context: grpc.aio.ServicerContext[Any, Any]
    ) -> whoami_pb2.DescribeResponse:
        """Answer one caller."""
        del request
        try:
            found = await self._describer.describe(context)
        except WorkloadError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return whoami_pb2.DescribeResponse(
            name=found.name,
            pid=found.pid,
            selectors=[
                whoami_pb2.Selector(type=each.type, value=each.value)
                for each in sorted(found.selectors)
            ],
            identities=[
                whoami_pb2.GrantedIdentity(
                    spiffe_id=str(grant.identity.spiffe_id),
                    dns_names=grant.identity.dns_names,
                    lifetime_seconds=int(grant.identity.lifetime.total_seconds()),
                    key_type=grant.identity.key_type,
                    rule=grant.rule,
                )
                for grant in found.granted
            ],
            state=found.state,
            why=found.why,
        )
