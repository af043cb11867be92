"""The authority's side of the exchange: one coroutine a stream.

Owns streams, their time limits and the order of checks. Invariants: nothing is issued before the
nonce, the policy, the evidence and the item have held, in this order; a nonce is spent by the
first request that names it, whatever comes of that; a stream that has proven nothing lives
``hello_seconds`` and makes room first; no stream can hold another one up (a large batch yields to
the loop, a slow reader waits alone).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import grpc

from sds._proto.sds.ca.v1 import ca_pb2
from sds.ca.desk import Accepted, AttestedPeer, Desk
from sds.ca.observe import TimedContext
from sds.clock import stopwatch
from sds.errors import RefusedError, SdsError
from sds.exchange import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.ca.proof import Prover
    from sds.clock import Clock
    from sds.exchange.challenge import AuthorityStatement, NonceTable, StreamNonces


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeLimits:
    """Bounds on what callers can make the authority hold.

    Attributes:
        streams: streams at once; one more and the oldest unproven one goes, or the new one where
            all are proven.
        hello_seconds: how long a stream may live without a request whose evidence held.
        write_seconds: how long a caller may take to read one answer.
        message_bytes: the largest message from a caller.
    """

    streams: int = 10_000
    hello_seconds: float = 30.0
    write_seconds: float = 30.0
    message_bytes: int = 4 * 1024 * 1024


class _Context(Protocol):
    """What we use of :class:`grpc.aio.ServicerContext`."""

    def peer(self) -> str: ...

    async def read(self) -> Any: ...

    async def write(self, message: Any) -> None: ...

    async def abort(self, code: grpc.StatusCode, details: str = "") -> Any: ...


@dataclass(slots=True, eq=False)
class _Stream:
    """One stream's state.

    ``timeout`` ends it while it has proven nothing; ``writing``: an answer is on its way;
    ``waiting``: the caller has the word.
    """

    peer: AttestedPeer
    nonces: StreamNonces
    timeout: asyncio.Timeout
    statement: AuthorityStatement | None = None
    writing: bool = False
    waiting: bool = False

    def end(self) -> None:
        """Let its coroutine end now."""
        self.timeout.reschedule(asyncio.get_running_loop().time())


class ExchangeService:
    """Serves ``Exchange``; see the module. ``run`` of the prover must be running beside it."""

    def __init__(
        self,
        *,
        desk: Desk,
        prover: Prover,
        nonces: NonceTable,
        clock: Clock,
        limits: ExchangeLimits,
    ) -> None:
        """Args: who decides and signs, who proves us, the table of nonces, time and bounds."""
        self._desk = desk
        self._prover = prover
        self._nonces = nonces
        self._clock = clock
        self._limits = limits
        self._unproven: OrderedDict[_Stream, None] = OrderedDict()
        self._open: set[_Stream] = set()
        self._draining = False

    @property
    def streams(self) -> int:
        """Streams open now."""
        return len(self._open)

    def drain(self) -> None:
        """End every stream as soon as it owes no answer; take no more."""
        self._draining = True
        for stream in self._open:
            if stream.waiting:
                stream.end()

    async def exchange(self, _: Any, context: _Context) -> None:
        """One stream, from its first message to its end."""
        if not self._make_room():
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.streams} streams are open, and no more are taken",
            )
        stream: _Stream | None = None
        try:
            async with asyncio.timeout(self._limits.hello_seconds) as timeout:
                stream = _Stream(AttestedPeer(name=context.peer()), self._nonces.open(), timeout)
                self._open.add(stream)
                self._unproven[stream] = None
                await self._converse(stream, context)
        except TimeoutError:
            if stream is not None and stream.writing:
                # A status cannot be sent behind an answer that nobody reads; a handler that ends
                # as cancelled makes gRPC reset the stream at once.
                raise asyncio.CancelledError("an answer was not read in time") from None
            if not self._draining:
                await context.abort(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"no request whose evidence held within {self._limits.hello_seconds:g} s, or "
                    "another had to make room",
                )
        finally:
            if stream is not None:
                self._open.discard(stream)
                self._unproven.pop(stream, None)
                self._nonces.close(stream.nonces)
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the authority is stopping")

    def _make_room(self) -> bool:
        """Whether one more stream may be served; the oldest unproven one is told to go."""
        if self.streams < self._limits.streams:
            return True
        if not self._unproven:
            return False
        oldest, _ = self._unproven.popitem(last=False)
        oldest.end()
        return True

    async def _converse(self, stream: _Stream, context: _Context) -> None:
        while not self._draining:
            stream.waiting = True
            data = await context.read()
            stream.waiting = False
            if data is grpc.aio.EOF:
                return
            try:
                answer = await self._answer_to(stream, data)
            except SdsError as error:
                self._desk.refused(stream.peer, error)
                if error.reason == "request_malformed":  # the stream does not get a second chance
                    await context.abort(
                        grpc.StatusCode.INVALID_ARGUMENT, f"{error.reason}: {error}"
                    )
                answer = wire.refusal_to_wire(
                    error,
                    next_nonce=self._next_nonce(stream),
                    signed_policy=self._desk.policy_for(error),
                )
            stream.writing = True
            async with asyncio.timeout(self._limits.write_seconds):
                await context.write(answer.SerializeToString())
            stream.writing = False

    async def _answer_to(self, stream: _Stream, data: bytes) -> ca_pb2.ExchangeResponse:
        request = wire.parse_request(data)
        match request.WhichOneof("request"):
            case "hello":
                return await self._hello(stream, request.hello)
            case "certificates":
                return await self._certificates(stream, request.certificates)
            case "attested_csr":
                return self._attested_csr(stream, request.attested_csr)
        raise RefusedError(
            "the message holds none of hello, certificates and attested_csr",
            reason="request_malformed",
        )

    def _next_nonce(self, stream: _Stream) -> bytes:
        return self._nonces.issue(stream.nonces, now=self._clock.now().monotonic)

    async def _hello(self, stream: _Stream, hello: ca_pb2.Hello) -> ca_pb2.ExchangeResponse:
        proof = await self._prover.prove(wire.nonce_from_wire(hello.nonce))
        stream.statement = proof.statement
        return wire.challenge_to_wire(
            proof.statement,
            nonce=self._next_nonce(stream),
            nonce_lifetime=self._nonces.lifetime,
            evidence=proof.evidence,
            covered=proof.covered,
        )

    def _spend_nonce(self, stream: _Stream, nonce: bytes) -> None:
        """Checks 2 and 3: the nonce is this stream's, and what we said at Hello still holds."""
        now = self._clock.now()
        self._nonces.redeem(stream.nonces, wire.nonce_from_wire(nonce), now=now.monotonic)
        if stream.statement != self._desk.statement():
            raise RefusedError(
                "the authority's key, roots or policy changed",
                advice="say Hello again",
                reason="challenge_stale",
            )

    async def _certificates(
        self, stream: _Stream, request: ca_pb2.CertificateRequest
    ) -> ca_pb2.ExchangeResponse:
        self._desk.check_size(request)  # check 1
        self._spend_nonce(stream, request.nonce)
        accepted = self._desk.accept(request, stream.peer)
        self._proven(stream)
        return self._answer(stream, accepted, await self._desk.issue(accepted))

    def _attested_csr(
        self, stream: _Stream, request: ca_pb2.AttestedCsr
    ) -> ca_pb2.ExchangeResponse:
        self._spend_nonce(stream, request.nonce)
        accepted, result = self._desk.issue_attested_csr(request, stream.peer)
        self._proven(stream)
        return self._answer(stream, accepted, [result])

    def _answer(
        self, stream: _Stream, accepted: Accepted, results: list[ca_pb2.ItemResult]
    ) -> ca_pb2.ExchangeResponse:
        return ca_pb2.ExchangeResponse(
            certificates=ca_pb2.CertificateResponse(
                results=results,
                next_nonce=self._next_nonce(stream),
                issuing_chain=accepted.signer.chain,
                roots=accepted.roots,
            )
        )

    def _proven(self, stream: _Stream) -> None:
        """Evidence held: the stream may stay as long as it likes."""
        if self._unproven.pop(stream, stream) is None:
            stream.timeout.reschedule(None)


def _tell_nobody(_seconds: float) -> None:
    """Nobody wants to know."""


def handler(
    service: ExchangeService, answered: Callable[[float], None] | None = None
) -> grpc.GenericRpcHandler:
    """The service as gRPC wants it: raw bytes in and out (see ``sds.exchange.wire``).

    Args:
        service: who answers.
        answered: hears how many seconds each message waited for its answer.
    """
    told = answered if answered is not None else _tell_nobody

    async def timed(requests: Any, context: Any) -> None:
        await service.exchange(requests, cast("Any", TimedContext(context, told, stopwatch)))

    exchange = service.exchange if answered is None else timed
    return grpc.method_handlers_generic_handler(
        wire.SERVICE, {"Exchange": grpc.stream_stream_rpc_method_handler(exchange)}
    )
