"""Who is subscribed to what: Envoy's client status discovery service (CSDS).

Owns the answers of ``envoy.service.status.v3.ClientStatusDiscoveryService``. Invariants: nothing
secret is in an answer (keys are redacted as Envoy's own config_dump does it); on a workload's
socket a caller sees the clients of its own recognition only, on the admin socket all.

Statuses (``envoy.service.status.v3.ConfigStatus``):

* ``SYNCED``: the client has ACKed what is served now;
* ``NOT_SENT``: it asks for something that does not exist for it;
* ``STALE``: it was sent something newer than it has ACKed, or what it has is not served any more;
* ``ERROR``: it has refused what is served now; ``error_state`` has its words.

An ACK proves that the client has parsed a secret, not that it is in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from envoy.admin.v3 import config_dump_shared_pb2
from envoy.service.status.v3 import csds_pb2

from sds.errors import MalformedRequestError, SdsError
from sds.serving.calls import status_of
from sds.serving.encode import SECRET_TYPE
from sds.serving.redaction import redact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from sds.serving.calls import Entitlements
    from sds.serving.conversation import Conversation
    from sds.serving.service import SecretService
    from sds.serving.session import CallerSession
    from sds.serving.stream import Stream
    from sds.serving.subscription import Watched

CSDS_SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"
_Client = tuple[str, str, str]


class ClientStatus:
    """The two calls of CSDS.

    Args:
        service: whose clients are shown.
        entitlements: who the caller is; None on the admin socket, where all clients are shown.
    """

    def __init__(self, service: SecretService, entitlements: Entitlements | None = None) -> None:
        self._service = service
        self._entitlements = entitlements

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """The handlers to add to a server."""
        codec: dict[str, Any] = {
            "request_deserializer": csds_pb2.ClientStatusRequest.FromString,
            "response_serializer": csds_pb2.ClientStatusResponse.SerializeToString,
        }
        return (
            grpc.method_handlers_generic_handler(
                CSDS_SERVICE,
                {
                    "StreamClientStatus": grpc.stream_stream_rpc_method_handler(
                        self._stream, **codec
                    ),
                    "FetchClientStatus": grpc.unary_unary_rpc_method_handler(self._fetch, **codec),
                },
            ),
        )

    async def _stream(
        self,
        requests: AsyncIterator[csds_pb2.ClientStatusRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> None:
        """One answer for each request."""
        async for request in requests:
            await context.write(await self._fetch(request, context))

    async def _fetch(
        self,
        request: csds_pb2.ClientStatusRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> csds_pb2.ClientStatusResponse:
        try:
            return client_status(request, await self._visible(context))
        except SdsError as error:
            status, _ = status_of(error)
            await context.abort(status, str(error))
            raise  # not reached: abort raises

    async def _visible(self, context: Any) -> tuple[CallerSession, ...]:
        sessions = self._service.sessions()
        if self._entitlements is None:
            return sessions
        caller = (await self._entitlements(context)).current
        return tuple(session for session in sessions if session.caller == caller)


def client_status(
    request: csds_pb2.ClientStatusRequest, sessions: Iterable[CallerSession]
) -> csds_pb2.ClientStatusResponse:
    """The status of all clients of ``sessions`` that the request's matchers admit.

    Raises:
        MalformedRequestError: the request matches by something else than the node's id.
    """
    admits = [_node_id_matcher(matcher) for matcher in request.node_matchers]
    clients: dict[_Client, list[Stream]] = {}
    for session in sessions:
        for stream in session.streams:
            if not admits or any(admit(stream.node.id) for admit in admits):
                client = (session.caller.name, stream.peer, stream.node.id)
                clients.setdefault(client, []).append(stream)
    response = csds_pb2.ClientStatusResponse()
    for (name, _, _), streams in sorted(clients.items()):
        config = response.config.add(client_scope=name)
        node = streams[0].node
        config.node.id = node.id
        config.node.cluster = node.cluster
        config.node.user_agent_name = node.user_agent
        contents = not request.exclude_resource_contents
        for stream in streams:
            for conversation in stream.conversations.values():
                for watched in sorted(conversation.subscription.watched()):
                    _add_resource(config, conversation, watched, contents=contents)
    return response


def _add_resource(
    config: Any, conversation: Conversation, watched: Watched, *, contents: bool
) -> None:
    current = conversation.current(watched.name)
    version = current.receipt.version if current is not None else None
    entry = config.generic_xds_configs.add(
        type_url=conversation.type_url, name=watched.name, version_info=watched.acked or ""
    )
    statuses = config_dump_shared_pb2
    if version is None and watched.acked is None and watched.sent is None:
        entry.config_status = csds_pb2.NOT_SENT
        entry.client_status = statuses.REQUESTED
    elif watched.refused is not None and watched.refused == watched.sent:
        entry.config_status = csds_pb2.ERROR
        entry.client_status = statuses.NACKED
        entry.error_state.details = watched.error
        entry.error_state.version_info = watched.refused
    elif version is not None and watched.acked == version:
        entry.config_status = csds_pb2.SYNCED
        entry.client_status = statuses.ACKED
    else:
        entry.config_status = csds_pb2.STALE
        entry.client_status = statuses.ACKED if watched.acked is not None else statuses.REQUESTED
    if contents and current is not None:
        if current.type_url == SECRET_TYPE:
            entry.xds_config.Pack(redact(current.secret))
        else:
            entry.xds_config.type_url = current.type_url
            entry.xds_config.value = current.secret


def _node_id_matcher(matcher: Any) -> Any:
    """A function that tells whether a node id matches."""
    pattern = matcher.node_id.WhichOneof("match_pattern")
    if matcher.node_metadatas or pattern not in ("exact", "prefix", "suffix", "contains"):
        raise MalformedRequestError(
            "node_matchers with metadata or regular expressions are not served",
            advice="match node_id by exact, prefix, suffix or contains",
        )
    wanted = getattr(matcher.node_id, pattern)
    fold = matcher.node_id.ignore_case
    if fold:
        wanted = wanted.lower()

    def admits(node_id: str) -> bool:
        given = node_id.lower() if fold else node_id
        if pattern == "exact":
            return bool(given == wanted)
        if pattern == "prefix":
            return given.startswith(wanted)
        if pattern == "suffix":
            return given.endswith(wanted)
        return wanted in given

    return admits
