"""The remote calls of one server: from gRPC to a stream, and from an error to a status.

Invariant: every stream belongs to a recognised caller from its first message to its end, and ends
with a status that says what was wrong and what to do.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import grpc

from sds.errors import (
    CallEndedError,
    LimitError,
    MalformedRequestError,
    ProtocolError,
    SdsError,
    WorkloadError,
    without_frames,
)
from sds.serving.answer_memory import AnswerMemory
from sds.serving.call_output import call_output_of
from sds.serving.conversation import response_version
from sds.serving.encode import SECRET_TYPE, sotw_response
from sds.serving.observer import Event, Method
from sds.serving.rbac import EXTENSION_TYPE
from sds.serving.slices import Pace
from sds.serving.wire import discovery_request, small_discovery_request
from sds.transport.call import Call

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sds.serving.service import SecretService
    from sds.workload.entitlement import Entitlement

logger = logging.getLogger("sds.serving.service")
_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

SDS_SERVICE: Final = "envoy.service.secret.v3.SecretDiscoveryService"
ECDS_SERVICE: Final = "envoy.service.extension.v3.ExtensionConfigDiscoveryService"
ADS_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
TYPES: Final[dict[Method, tuple[str, ...]]] = {
    Method.STREAM: (SECRET_TYPE,),
    Method.DELTA: (SECRET_TYPE,),
    Method.FETCH: (SECRET_TYPE,),
    Method.ECDS_STREAM: (EXTENSION_TYPE,),
    Method.ECDS_DELTA: (EXTENSION_TYPE,),
    Method.ECDS_FETCH: (EXTENSION_TYPE,),
    Method.ADS_STREAM: (SECRET_TYPE, EXTENSION_TYPE),
    Method.ADS_DELTA: (SECRET_TYPE, EXTENSION_TYPE),
}
"""The resource types that each call serves."""
_CALLS: Final = {
    SDS_SERVICE: {
        "StreamSecrets": Method.STREAM,
        "DeltaSecrets": Method.DELTA,
        "FetchSecrets": Method.FETCH,
    },
    ECDS_SERVICE: {
        "StreamExtensionConfigs": Method.ECDS_STREAM,
        "DeltaExtensionConfigs": Method.ECDS_DELTA,
        "FetchExtensionConfigs": Method.ECDS_FETCH,
    },
    ADS_SERVICE: {
        "StreamAggregatedResources": Method.ADS_STREAM,
        "DeltaAggregatedResources": Method.ADS_DELTA,
    },
}
_ONCE: Final = frozenset({Method.FETCH, Method.ECDS_FETCH})
METHODS: Final = {
    f"/{service}/{name}": method
    for service, named in _CALLS.items()
    for name, method in named.items()
}
"""Maps the paths of calls to the method's name in metrics."""
_STATUS: Final[tuple[tuple[type[SdsError], grpc.StatusCode, Event], ...]] = (
    (LimitError, grpc.StatusCode.RESOURCE_EXHAUSTED, Event.LIMIT),
    (MalformedRequestError, grpc.StatusCode.INVALID_ARGUMENT, Event.MALFORMED),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT, Event.MALFORMED),
    (WorkloadError, grpc.StatusCode.PERMISSION_DENIED, Event.STREAM_REFUSED),
)


class Entitlements(Protocol):
    """Tells who is at the other end of a connection."""

    async def __call__(self, context: Any, /) -> Entitlement:
        """Return the entitlement of the caller behind a call's context.

        Raises:
            WorkloadError: the caller may not be served.
        """
        ...


def status_of(error: SdsError) -> tuple[grpc.StatusCode, Event]:
    """Return the gRPC status and the event for an error that ends a stream."""
    for kind, status, event in _STATUS:
        if isinstance(error, kind):
            wrong_type = error.reason == "wrong_type_url"
            return status, Event.WRONG_TYPE if wrong_type else event
    return grpc.StatusCode.UNAVAILABLE, Event.STREAM_REFUSED


def handlers(calls: SocketCalls) -> tuple[grpc.GenericRpcHandler, ...]:
    """Make the handlers of every service, for one server."""
    return tuple(
        grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(calls.fetch(method))
                if method in _ONCE
                else grpc.stream_stream_rpc_method_handler(calls.stream(method))
                for name, method in named.items()
            },
        )
        for service, named in _CALLS.items()
    )


def _uncancel() -> None:
    """Take back the cancellation of the current task.

    This is a function of its own because a frame with the task in a variable keeps the task alive.
    The task keeps the frames in which it was cancelled, and they have the message to be written.
    """
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class SocketCalls:
    """The calls of one server."""

    def __init__(self, service: SecretService, entitlements: Entitlements) -> None:
        self._service = service
        self._entitlements = entitlements
        self._streams = 0
        self._streams_of: dict[str, int] = {}

    def stream(self, method: Method) -> Callable[[AsyncIterator[bytes], _Context], Awaitable[None]]:
        """Make the handler of a streaming call."""

        async def handle(requests: AsyncIterator[bytes], context: _Context) -> None:
            try:
                await self._serve(method, requests, context)
            except CallEndedError:
                raise  # the client hung up while a message was on its way to it
            except SdsError as error:
                await self._refuse(method, context, error)

        return handle

    def fetch(self, method: Method) -> Callable[[bytes, _Context], Awaitable[bytes]]:
        """Make the handler of a call that answers once, with what exists now."""

        async def handle(request: bytes, context: _Context) -> bytes:
            try:
                return await self._fetch(method, request, context)
            except SdsError as error:
                await self._refuse(method, context, error)
                raise  # not reached: abort raises

        return handle

    async def _fetch(self, method: Method, request: bytes, context: _Context) -> bytes:
        service = self._service
        (type_url,) = TYPES[method]
        entitlement = await self._admit(context)
        service.observer.count(Event.REQUEST, method)
        limit = service.options.limits.names_per_stream
        pace = Pace(call_output_of(context))
        parsed = small_discovery_request(request, max_names=limit)
        if parsed is None:
            parsed = await pace.run(discovery_request(request, max_names=limit))
        if parsed.type_url not in ("", type_url):
            raise ProtocolError(
                f"type_url {parsed.type_url[:200]!r} is not served here",
                advice=f"ask for {type_url}",
                reason="wrong_type_url",
            )
        strong = parsed.node is not None and parsed.node.wants_spiffe_validator
        with AnswerMemory(context, advice="ask for fewer resources at once") as held:
            answer = await pace.run(
                service.answer(entitlement, type_url, parsed.request, strong=strong, held=held)
            )
            resources = answer.resources
            service.observer.count(Event.RESPONSE, method)
            service.observer.count(Event.SENT, method, len(resources))
            if answer.absent:
                service.observer.count(Event.ABSENT, method, len(answer.absent))
            version = response_version(resources) or service.empty_version
            return sotw_response(resources, type_url=type_url, version=version, nonce="")

    async def _admit(self, context: _Context) -> Entitlement:
        if self._service.draining is not None:
            raise without_frames(self._service.draining)
        entitlement = await self._entitlements(context)
        if entitlement.ended is not None:
            raise entitlement.ended
        self._service.unsent.follow(context)
        return entitlement

    async def _serve(
        self, method: Method, requests: AsyncIterator[bytes], context: _Context
    ) -> None:
        service = self._service
        peer, output = context.peer(), call_output_of(context)
        entitlement = await self._admit(context)
        # grpc gives all connections of a socket the same name, and limits the streams of each
        # itself.
        connection, owner = "", f"workload {entitlement.current.name}"
        if isinstance(output, Call):
            connection, owner = peer, output.owner.name
        self._count_in(connection)
        stream = service.open_stream(entitlement, method, output, peer=peer, owner=owner)
        now = asyncio.get_running_loop().time
        if isinstance(output, Call):
            output.at_once = stream.take_at_once
        try:
            async for data in requests:
                await stream.take(data, now())
                del data  # it counts for nobody while this waits for the next one
        except asyncio.CancelledError:
            if stream.ending is None:
                raise
            _uncancel()
            await output.quiet()
            raise stream.ending from None
        finally:
            self._count_out(connection)
            try:
                await stream.close()
            finally:
                service.close_stream(stream)

    def _count_in(self, peer: str) -> None:
        limits = self._service.options.limits
        if self._streams >= limits.streams_per_socket:
            raise LimitError(
                f"{self._streams} streams are open on this socket",
                advice="raise limits.streams_per_socket",
            )
        of_peer = self._streams_of.get(peer, 0)
        if peer and of_peer >= limits.streams_per_connection:
            raise LimitError(
                f"{of_peer} streams are open on this connection",
                advice="ask for several secrets on one stream, or raise "
                "limits.streams_per_connection",
            )
        self._streams += 1
        self._streams_of[peer] = of_peer + 1

    def _count_out(self, peer: str) -> None:
        self._streams -= 1
        self._streams_of[peer] -= 1
        if not self._streams_of[peer]:
            del self._streams_of[peer]

    async def _refuse(self, method: Method, context: _Context, error: SdsError) -> None:
        """End the call with the status of this error; this always raises."""
        without_frames(error)  # the error may outlive the call: it may end an entitlement
        status, event = status_of(error)
        self._service.observer.count(event, method)
        if event is not Event.STREAM_REFUSED:
            self._service.observer.count(Event.STREAM_REFUSED, method)
        logger.log(
            # One line says that the agent stops; every call that ends with it is no failure.
            logging.DEBUG if error.reason == "draining" else logging.WARNING,
            "call refused",
            extra={"method": method.value, "reason": error.reason, "error": str(error)},
        )
        await context.abort(status, str(error))
