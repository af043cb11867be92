"""Who is subscribed to what: Envoy's client status discovery service (CSDS).

Owns the answers of ``envoy.service.status.v3.ClientStatusDiscoveryService``. Invariants: nothing
secret is in an answer (keys are redacted as Envoy's own config_dump does it); on a workload's
socket, a caller sees only the clients that were recognised as the same workload (on the node-wide
socket: the same process), and on the admin socket all clients; the size of a request is checked
before it is parsed, and that of an answer while it is made, in slices (:mod:`sds.serving.slices`),
because a caller chooses how many matchers a request has and how many streams and names an answer
has.

Statuses (``envoy.service.status.v3.ConfigStatus``):

* ``SYNCED``: the client has ACKed what is served now;
* ``NOT_SENT``: the client asks for something that does not exist for it;
* ``STALE``: it was sent a newer version than it has ACKed, or what it has is no longer served;
* ``ERROR``: it has refused what is served now; ``error_state`` has the client's text.

An ACK proves that the client has parsed a secret, not that it is in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import grpc
from envoy.admin.v3 import config_dump_shared_pb2
from envoy.service.status.v3 import csds_pb2
from google.protobuf.message import DecodeError

from sds.errors import LimitError, MalformedRequestError, SdsError
from sds.serving.answer_memory import AnswerMemory
from sds.serving.call_output import call_output_of
from sds.serving.calls import status_of
from sds.serving.encode import SECRET_TYPE
from sds.serving.redaction import redact
from sds.serving.slices import Pace
from sds.serving.wire import length_delimited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from sds.serving.calls import Entitlements
    from sds.serving.conversation import Conversation
    from sds.serving.service import SecretService
    from sds.serving.session import CallerSession
    from sds.serving.slices import Slices
    from sds.serving.stream import Stream
    from sds.serving.subscription import Watched

CSDS_SERVICE: Final = "envoy.service.status.v3.ClientStatusDiscoveryService"
MOST_REQUEST_BYTES: Final = 16 * 1024
"""The largest request; a matcher of two bytes becomes an object of a hundred."""
MOST_MATCHERS: Final = 64
_STREAM_BYTES: Final = 128
_NAME_BYTES: Final = 192
"""Bytes of memory for each stream and each name until the answer is made."""
_NARROW: Final = "match the clients by node_id, or set exclude_resource_contents"
_AT_ONCE: Final = 20
"""How many streams or names are handled between two looks at the clock."""
_Client = tuple[str, str, str]
_from_bytes: Final = csds_pb2.ClientStatusRequest.FromString


class ClientStatus:
    """The two calls of CSDS.

    Args:
        service: the service whose clients are shown.
        entitlements: tells who the caller is; None on the admin socket, which shows all clients.
    """

    def __init__(self, service: SecretService, entitlements: Entitlements | None = None) -> None:
        self._service = service
        self._entitlements = entitlements

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the handlers to add to a server."""
        return (
            grpc.method_handlers_generic_handler(
                CSDS_SERVICE,
                {
                    "StreamClientStatus": grpc.stream_stream_rpc_method_handler(self._stream),
                    "FetchClientStatus": grpc.unary_unary_rpc_method_handler(self._fetch),
                },
            ),
        )

    async def _stream(
        self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Give one answer for each request."""
        async for request in requests:
            written = [await self._fetch(request, context)]
            del request  # it counts for nobody while this waits
            await context.write(written.pop())

    async def _fetch(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        try:
            with AnswerMemory(context, advice=_NARROW) as held:
                parsed = _parse(request)
                work = client_status(parsed, await self._visible(context), held)
                return await Pace(call_output_of(context)).run(work)
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


def _parse(data: bytes) -> csds_pb2.ClientStatusRequest:
    """Parse the request.

    Raises:
        LimitError: it is too large, or has too many matchers.
        MalformedRequestError: it is not the message.
    """
    if len(data) > MOST_REQUEST_BYTES:
        raise LimitError(
            f"the request has {len(data)} bytes", advice=f"send at most {MOST_REQUEST_BYTES}"
        )
    try:
        request = _from_bytes(data)
    except DecodeError:
        raise MalformedRequestError("the request is not a ClientStatusRequest") from None
    if len(request.node_matchers) > MOST_MATCHERS:
        raise LimitError(f"the request has more than {MOST_MATCHERS} node_matchers")
    return request


def client_status(
    request: csds_pb2.ClientStatusRequest,
    sessions: Iterable[CallerSession],
    held: AnswerMemory,
) -> Slices[bytes]:
    """Encode the status of all clients of ``sessions`` that match the request.

    Args:
        request: the request.
        sessions: the sessions of the clients that may be shown.
        held: counts the memory of the answer.

    Raises:
        LimitError: the answer is too large.
        MalformedRequestError: the request matches by something other than the node's id.
    """
    admits = [_node_id_matcher(matcher) for matcher in request.node_matchers]
    clients: dict[_Client, list[Stream]] = {}
    for session in sessions:
        streams = tuple(session.streams)  # a copy, because some end while this waits
        held.work(_STREAM_BYTES * len(streams))
        for at in range(0, len(streams), _AT_ONCE):
            for stream in streams[at : at + _AT_ONCE]:
                if not admits or any(admit(stream.node.id) for admit in admits):
                    client = (session.caller.name, stream.peer, stream.node.id)
                    clients.setdefault(client, []).append(stream)
            yield _AT_ONCE
    encoded: list[bytes] = []
    for (name, _, _), listed in sorted(clients.items()):
        config = _client(name, listed[0])
        held.answer(len(config[0]))
        for stream in listed:
            for conversation in tuple(stream.conversations.values()):
                held.work(_NAME_BYTES * len(conversation.subscription))
                names = sorted(conversation.subscription.watched())
                for at in range(0, len(names), _AT_ONCE):
                    some = names[at : at + _AT_ONCE]
                    parts = _resources(request, conversation, some)
                    held.answer(sum(map(len, parts)))
                    config += parts
                    yield len(some)
            yield 1
        encoded.append(length_delimited(1, b"".join(config)))
    return b"".join(encoded)


def _client(name: str, stream: Stream) -> list[bytes]:
    """Encode the beginning of a ``ClientConfig``, without its resources."""
    node = stream.node
    config = csds_pb2.ClientConfig(client_scope=name)
    config.node.id = node.id
    config.node.cluster = node.cluster
    config.node.user_agent_name = node.user_agent
    return [config.SerializeToString()]


def _resources(
    request: csds_pb2.ClientStatusRequest, conversation: Conversation, names: Sequence[Watched]
) -> list[bytes]:
    """Encode elements of ``ClientConfig.generic_xds_configs``."""
    contents = not request.exclude_resource_contents
    return [
        length_delimited(3, _resource(conversation, one, contents=contents).SerializeToString())
        for one in names
    ]


def _resource(conversation: Conversation, watched: Watched, *, contents: bool) -> Any:
    current = conversation.current(watched.name)
    version = current.receipt.version if current is not None else None
    entry = csds_pb2.ClientConfig.GenericXdsConfig(
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
    return entry


def _node_id_matcher(matcher: Any) -> Any:
    """Return a function that says whether a node id matches."""
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
