"""The remote calls of the secret discovery service, over bytes.

Owns the way from a gRPC call to a :class:`~sds.serving.streams.Stream`, and from an error to a
status.
Invariant: every stream belongs to a recognised caller from its first message to its end, and ends
with a status that says what was wrong and what to do.

One :class:`SecretService` serves all sockets of an agent. Each socket's server gets the handlers
of :meth:`SecretService.handlers` with a function that tells who is at the other end.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc

from sds.clock import Clock, SystemClock
from sds.errors import (
    CallEndedError,
    LimitError,
    MalformedRequestError,
    ProtocolError,
    SdsError,
    WorkloadError,
)
from sds.identity import Identity
from sds.repeats import Repeats
from sds.serving.catalog import Aliases, Catalog, GenericSecrets, TicketKeys
from sds.serving.conversation import response_version
from sds.serving.encode import SECRET_TYPE, sotw_response
from sds.serving.idle import AfterTheCrowd
from sds.serving.limits import ServingLimits
from sds.serving.names import NameBudget
from sds.serving.observer import Event, Method, NullObserver, ServingObserver
from sds.serving.session import CallerSession
from sds.serving.snapshot import Snapshot
from sds.serving.stream import Stream, Transport
from sds.serving.subscription import SotwSubscription
from sds.serving.unsent import UnsentSecrets
from sds.serving.wire import parse_discovery_request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sds.secrets.store import Change, SecretStore
    from sds.serving.encode import Resource
    from sds.serving.peers import PeerPolicy
    from sds.workload.entitlement import Entitlement

logger = logging.getLogger("sds.serving.service")

SDS_SERVICE: Final = "envoy.service.secret.v3.SecretDiscoveryService"
ADS_SERVICE: Final = "envoy.service.discovery.v3.AggregatedDiscoveryService"
_TYPES: Final = {
    Method.STREAM: (SECRET_TYPE,),
    Method.DELTA: (SECRET_TYPE,),
    Method.ADS_STREAM: (SECRET_TYPE,),
    Method.ADS_DELTA: (SECRET_TYPE,),
}
METHODS: Final = {
    f"/{SDS_SERVICE}/StreamSecrets": Method.STREAM,
    f"/{SDS_SERVICE}/DeltaSecrets": Method.DELTA,
    f"/{SDS_SERVICE}/FetchSecrets": Method.FETCH,
    f"/{ADS_SERVICE}/StreamAggregatedResources": Method.ADS_STREAM,
    f"/{ADS_SERVICE}/DeltaAggregatedResources": Method.ADS_DELTA,
}
"""Paths of calls to the method's name in metrics."""
_STATUS: Final[tuple[tuple[type[SdsError], grpc.StatusCode, Event], ...]] = (
    (LimitError, grpc.StatusCode.RESOURCE_EXHAUSTED, Event.LIMIT),
    (MalformedRequestError, grpc.StatusCode.INVALID_ARGUMENT, Event.MALFORMED),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT, Event.MALFORMED),
    (WorkloadError, grpc.StatusCode.PERMISSION_DENIED, Event.STREAM_REFUSED),
)


class Entitlements(Protocol):
    """Who is at the other end of a connection."""

    async def __call__(self, context: Any, /) -> Entitlement:
        """The caller behind a call's context.

        Raises:
            WorkloadError: nobody that may be served.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """What is served, and how much of it.

    Attributes:
        aliases: the short names.
        spiffe_validator: serve the own trust domain's bundle as the SPIFFE validator too.
        limits: what one client may do.
        peers: policy about peers.
        tickets: session ticket keys.
        generic: generic secrets.
    """

    aliases: Aliases = field(default_factory=Aliases)
    spiffe_validator: bool = False
    limits: ServingLimits = field(default_factory=ServingLimits)
    peers: PeerPolicy | None = None
    tickets: TicketKeys | None = None
    generic: GenericSecrets | None = None


class SecretService:
    """See the module.

    Args:
        store: what is served.
        options: what is served of it, and how.
        observer: who counts what happens.
        clock: for the rate of requests.
    """

    def __init__(
        self,
        store: SecretStore,
        *,
        options: ServingOptions | None = None,
        observer: ServingObserver | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.options = options if options is not None else ServingOptions()
        self.observer: ServingObserver = observer if observer is not None else NullObserver()
        self.clock: Clock = clock if clock is not None else SystemClock()
        self._catalog = Catalog(
            store,
            aliases=self.options.aliases,
            spiffe_validator=self.options.spiffe_validator,
            peers=self.options.peers,
            tickets=self.options.tickets,
            generic=self.options.generic,
        )
        self._sessions: dict[Entitlement, CallerSession] = {}
        self._names = NameBudget(self.options.limits.names)
        self._crowd: AfterTheCrowd | None = None
        self.unsent = UnsentSecrets(store)
        self._said = Repeats()
        self.draining: SdsError | None = None
        self.empty_version = store.draw_version()
        """The version of an answer without resources."""
        self._stop_listening = store.listen(self._on_change)

    # --- for the agent --------------------------------------------------------------------------

    def handlers(self, entitlements: Entitlements) -> tuple[grpc.GenericRpcHandler, ...]:
        """The handlers for one server; ``entitlements`` tells who its clients are."""
        socket = _Socket(self, entitlements)
        return (
            grpc.method_handlers_generic_handler(
                SDS_SERVICE,
                {
                    "StreamSecrets": grpc.stream_stream_rpc_method_handler(
                        socket.stream(Method.STREAM)
                    ),
                    "DeltaSecrets": grpc.stream_stream_rpc_method_handler(
                        socket.stream(Method.DELTA)
                    ),
                    "FetchSecrets": grpc.unary_unary_rpc_method_handler(socket.fetch),
                },
            ),
            grpc.method_handlers_generic_handler(
                ADS_SERVICE,
                {
                    "StreamAggregatedResources": grpc.stream_stream_rpc_method_handler(
                        socket.stream(Method.ADS_STREAM)
                    ),
                    "DeltaAggregatedResources": grpc.stream_stream_rpc_method_handler(
                        socket.stream(Method.ADS_DELTA)
                    ),
                },
            ),
        )

    def refresh(self, *, trust_changed: bool = True) -> None:
        """Something else than the store changed: push what differs.

        Args:
            trust_changed: policy changed, so session tickets from before must not be accepted any
                more; False where only ticket keys or generic secrets are new.
        """
        if trust_changed:
            self._catalog.forget_contexts()
        self.unsent.retired()  # ticket keys, or generic secrets
        for session in list(self._sessions.values()):
            if trust_changed:
                session.refresh()
            else:
                session.reloaded()

    def drain(self) -> None:
        """End all streams with UNAVAILABLE; new ones are refused the same way."""
        self.draining = SdsError(
            "this agent is going down", reason="draining", advice="connect again"
        )
        for session in list(self._sessions.values()):
            session.end(self.draining)

    def close(self) -> None:
        """Drain, and stop listening to the store."""
        self.drain()
        self._stop_listening()
        self.unsent.close()
        if self._crowd is not None:
            self._crowd.close()

    def sessions(self) -> tuple[CallerSession, ...]:
        """The callers that have a stream now."""
        return tuple(self._sessions.values())

    def refused(self, path: str, error: SdsError) -> None:
        """A call was refused before its handler: count it, and log it once in an interval.

        Args:
            path: ``/service/Method``, as the caller wrote it.
            error: why.
        """
        method = METHODS.get(path)
        if method is not None:
            self.observer.count(Event.STREAM_REFUSED, method)
        label = method.value if method is not None else "other"
        times = self._said.due((label, error.reason), now=self.clock.now().monotonic)
        if times is not None:
            logger.warning(
                "call refused",
                extra={
                    "method": label,
                    "reason": error.reason,
                    "error": str(error),
                    "times": times,
                },
            )

    def open_stream(
        self, entitlement: Entitlement, method: Method, transport: Transport, peer: str
    ) -> Stream:
        """A stream of this caller until :meth:`close_stream`; in the task that reads it."""
        session = self._enter(entitlement)
        stream = Stream(
            transport,
            session=session,
            method=method,
            types=_TYPES[method],
            limits=self.options.limits,
            observer=self.observer,
            peer=peer,
        )
        session.streams[stream] = None
        if self._crowd is None:
            self._crowd = AfterTheCrowd(asyncio.get_running_loop())
        self._crowd.opened()
        self.observer.count(Event.STREAM_OPENED, method)
        return stream

    def close_stream(self, stream: Stream) -> None:
        """The stream is over."""
        stream.session.leave(stream)
        self._leave(stream.session)
        self.observer.count(Event.STREAM_CLOSED, stream.method)

    def view(self, entitlement: Entitlement, *, strong: bool) -> Snapshot:
        """What the caller may have at this moment."""
        return Snapshot(self._catalog, entitlement.current, strong=strong)

    def status_of(self, error: SdsError) -> tuple[grpc.StatusCode, Event]:
        """The gRPC status and the event for an error that ends a stream."""
        for kind, status, event in _STATUS:
            if isinstance(error, kind):
                wrong_type = error.reason == "wrong_type_url"
                return status, Event.WRONG_TYPE if wrong_type else event
        return grpc.StatusCode.UNAVAILABLE, Event.STREAM_REFUSED

    # --- inside ---------------------------------------------------------------------------------

    def _on_change(self, change: Change) -> None:
        identities = {key for key in change.keys if isinstance(key, Identity)}
        bundles = len(identities) < len(change.keys)
        for identity in identities:
            self._catalog.forget_svid(identity)
        if bundles:
            self._catalog.forget_contexts()
        for session in list(self._sessions.values()):
            if bundles or not identities.isdisjoint(session.caller.identities):
                session.changed(change.keys)

    def _enter(self, entitlement: Entitlement) -> CallerSession:
        session = self._sessions.get(entitlement)
        if session is None:
            session = self._sessions[entitlement] = CallerSession(
                entitlement, self._catalog, self._names
            )
        return session

    def _leave(self, session: CallerSession) -> None:
        if not session.streams and self._sessions.get(session.entitlement) is session:
            del self._sessions[session.entitlement]
            session.close()


def _uncancel() -> None:
    """Take back the cancellation of the current task.

    A frame that had the task in a variable would keep it, and the task keeps the frames in which
    it was cancelled, with the message that they were about to write.
    """
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


class _Socket:
    """The calls of one server."""

    def __init__(self, service: SecretService, entitlements: Entitlements) -> None:
        self._service = service
        self._entitlements = entitlements
        self._streams = 0
        self._streams_of: dict[str, int] = {}

    def stream(
        self, method: Method
    ) -> Callable[[AsyncIterator[bytes], grpc.aio.ServicerContext[bytes, bytes]], Awaitable[None]]:
        """The handler of a streaming call."""

        async def handle(
            requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]
        ) -> None:
            try:
                await self._serve(method, requests, context)
            except CallEndedError:
                raise  # the client hung up while something was on its way to it
            except SdsError as error:
                await self._refuse(method, context, error)

        return handle

    async def fetch(self, request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """FetchSecrets: what exists now, maybe nothing."""
        service = self._service
        method = Method.FETCH
        try:
            entitlement = await self._admit(context)
            service.observer.count(Event.REQUEST, method)
            limit = service.options.limits.names_per_stream
            parsed = parse_discovery_request(request, max_names=limit)
            if parsed.type_url not in ("", SECRET_TYPE):
                raise ProtocolError(
                    f"type_url {parsed.type_url[:200]!r} is not served here",
                    advice=f"ask for {SECRET_TYPE}",
                    reason="wrong_type_url",
                )
            strong = parsed.node is not None and parsed.node.wants_spiffe_validator
            view = service.view(entitlement, strong=strong)
            subscription: SotwSubscription[Resource] = SotwSubscription()
            subscription.receive(parsed.request)
            answer = subscription.respond(view, "")
            resources = answer.resources if answer is not None else []
            service.observer.count(Event.RESPONSE, method)
            service.observer.count(Event.SENT, method, len(resources))
            if answer is not None and answer.absent:
                service.observer.count(Event.ABSENT, method, len(answer.absent))
            version = response_version(resources) or service.empty_version
            return sotw_response(resources, type_url=SECRET_TYPE, version=version, nonce="")
        except SdsError as error:
            await self._refuse(method, context, error)
            raise  # not reached: abort raises

    async def _admit(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> Entitlement:
        if self._service.draining is not None:
            raise self._service.draining
        entitlement = await self._entitlements(context)
        if entitlement.ended is not None:
            raise entitlement.ended
        self._service.unsent.follow(context)
        return entitlement

    async def _serve(
        self,
        method: Method,
        requests: AsyncIterator[bytes],
        context: grpc.aio.ServicerContext[bytes, bytes],
    ) -> None:
        service = self._service
        peer = context.peer()
        entitlement = await self._admit(context)
        self._count_in(peer)
        stream = service.open_stream(entitlement, method, context, peer)
        clock = service.clock
        try:
            async for data in requests:
                await stream.take(data, clock.now().monotonic)
        except asyncio.CancelledError:
            if stream.ending is None:
                raise
            _uncancel()
            raise stream.ending from None
        finally:
            self._count_out(peer)
            service.close_stream(stream)
            await stream.close()

    def _count_in(self, peer: str) -> None:
        limits = self._service.options.limits
        if self._streams >= limits.streams_per_socket:
            raise LimitError(
                f"{self._streams} streams are open on this socket",
                advice="raise limits.streams_per_socket",
            )
        of_peer = self._streams_of.get(peer, 0)
        if of_peer >= limits.streams_per_connection:
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

    async def _refuse(
        self,
        method: Method,
        context: grpc.aio.ServicerContext[bytes, bytes],
        error: SdsError,
    ) -> None:
        """End the call with the status that the error stands for; always raises."""
        # It may outlive the call (the end of an entitlement); the call's frames must not.
        error.__traceback__ = None
        status, event = self._service.status_of(error)
        self._service.observer.count(event, method)
        if event is not Event.STREAM_REFUSED:
            self._service.observer.count(Event.STREAM_REFUSED, method)
        logger.warning(
            "call refused",
            extra={"method": method.value, "reason": error.reason, "error": str(error)},
        )
        await context.abort(status, str(error))
