"""Tells a caller what is known about it, over the socket that it uses.

Owns the service ``sds.workload.v1.Whoami``. Invariant: the answer contains what was found about the
calling process and which identities it has; it contains no rule's condition and nothing about any
other caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc

from sds._proto.sds.workload.v1 import whoami_pb2
from sds.errors import WorkloadError
from sds.workload.connection_caller import connected

if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE: Final = "sds.workload.v1.Whoami"
METHOD: Final = f"/{SERVICE}/Describe"


class WhoamiService:
    """Serves :data:`SERVICE`."""

    def handler(self) -> grpc.GenericRpcHandler:
        """Make the handler for a ``grpc.aio`` server."""
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
            found = await connected(context).describe()
        except WorkloadError as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return whoami_pb2.DescribeResponse(
            name=_text(found.name),
            pid=found.pid,
            selectors=[
                whoami_pb2.Selector(type=each.type, value=_text(each.value))
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
            why=_text(found.why),
            details=map(_text, found.details),
        )


def _text(found: str) -> str:
    """Return text that protobuf takes: Linux allows names that are not UTF-8, as does JSON."""
    return found.encode(errors="backslashreplace").decode()
