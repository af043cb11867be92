"""The authority's side of the exchange: one coroutine for each stream.

Owns streams, their time limits and the order of checks. Invariants: nothing is issued before the
nonce, the policy, the evidence and the item passed their checks, in this order; a request of a
valid size uses up its nonce, whatever the result; a stream that has proven nothing lives
``hello_seconds``, is the first to make room, is read only in its turn
(:mod:`sds.ca.unproven_streams`) and may send few messages; one machine cannot take every stream
(:mod:`sds.ca.machine_shares`); no stream can hold up another one (a large batch yields to the loop,
a slow reader waits alone); a fault while one message is answered ends only that stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import grpc

from sds._proto.sds.ca.v1 import ca_pb2
from sds.ca.issuing_turns import IssuingTurns
from sds.ca.machine_shares import MachineShares, machine_of
from sds.ca.observer import TimedContext
from sds.ca.unproven_streams import Crowd, ReadingTurns
from sds.clock import stopwatch
from sds.errors import CallEndedError, RefusedError, SdsError
from sds.exchange import wire
from sds.faults import report
from sds.untrusted_input import ends_one_thing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.attestation.evidence import Claims
    from sds.ca.connections import KnownConnection
    from sds.ca.own_evidence import Prover
    from sds.ca.registration import Accepted, RegistrationAuthority
    from sds.clock import Clock
    from sds.exchange.challenge import AuthorityStatement, NonceTable, StreamNonces
    from sds.transport.call import Call

_HELLO_LEASE: Final = 0.5
"""Seconds for a stream's Hello while others wait; clients send it with the call."""
_REQUEST_LEASE: Final = 3.0
"""Seconds for a stream's request while others wait; evidence may take a machine that long."""
_ISSUING: Final = 4
"""How many requests are decided and signed at once; the others wait for their turns
(:mod:`sds.ca.issuing_turns`). With more, each would take longer, Hellos would wait for all of them,
and a request of a caller that has gone would be begun before its end is noticed. A long request
waits for a turn again after each :data:`sds.ca.registration.ITEMS_A_TURN` items, so that short ones
need not wait for all of it."""
_UNPROVEN_MESSAGES: Final = 1_000
"""The most messages on a stream that has proven nothing; an agent sends two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeLimits:
    """The bounds on what callers can make the authority keep.

    Attributes:
        streams: the most streams at once. If one more comes, an unproven one ends, or the new one
            if all are proven. While few are free, a machine that has more than an eighth of them
            loses its oldest.
        unproven: the most of these that have proven nothing.
        unproven_bytes: the most bytes of half-received messages of unproven streams.
        hello_seconds: how long a stream may live before its evidence is accepted.
        write_seconds: how long a caller may take to read one answer.
        message_bytes: the largest message from a caller.
    """

    streams: int = 10_000
    unproven: int = 1_000
    unproven_bytes: int = 64 * 1024 * 1024
    hello_seconds: float = 30.0
    write_seconds: float = 30.0
    message_bytes: int = 4 * 1024 * 1024


@dataclass(slots=True, eq=False)
class _Stream:
    """The state of one stream.

    ``timeout`` ends it while it has proven nothing. ``writing`` means that an answer is on its way,
    and ``waiting`` that the stream waits for the caller's next message. ``messages`` and
    ``read_bytes`` count what it sent before evidence of a ``machine`` was accepted on it.
    """

    peer: str
    context: Call
    connection: KnownConnection
    nonces: StreamNonces
    timeout: asyncio.Timeout
    statement: AuthorityStatement | None = None
    writing: bool = False
    waiting: bool = False
    messages: int = 0
    read_bytes: int = 0
    machine: str = ""

    @property
    def owner(self) -> str:
        """Return who opened its connection: an address or network."""
        return self.connection.owner

    @property
    def proven(self) -> bool:
        """Say whether evidence was accepted on it."""
        return bool(self.machine)

    @property
    def lease(self) -> float:
        """Return the seconds that its next message may take while other unproven streams wait."""
        return _HELLO_LEASE if self.statement is None else _REQUEST_LEASE

    def end(self) -> None:
        """Let the coroutine end now, if its time is not over already."""
        if not self.timeout.expired():
            self.timeout.reschedule(asyncio.get_running_loop().time())


class ExchangeService:
    """Serves ``Exchange``; ``run`` of the prover must be running beside it."""

    def __init__(
        self,
        *,
        registration: RegistrationAuthority,
        prover: Prover,
        nonces: NonceTable,
        clock: Clock,
        limits: ExchangeLimits,
    ) -> None:
        """Args: who decides and signs, who proves us, the table of nonces, time and bounds."""
        self._registration = registration
        self._prover = prover
        self._nonces = nonces
        self._clock = clock
        self._limits = limits
        self._unproven: Crowd[_Stream] = Crowd(limits.unproven)
        self._proven: MachineShares[_Stream] = MachineShares(limits.streams, "streams")
        self._issuing = IssuingTurns(_ISSUING)
        self._turns = ReadingTurns(max(1, limits.unproven_bytes // limits.message_bytes))
        self._open: set[_Stream] = set()
        self._draining = False

    @property
    def streams(self) -> int:
        """Return how many streams are open."""
        return len(self._open)

    def drain(self) -> None:
        """End every stream as soon as it owes no answer, and accept no more."""
        self._draining = True
        for stream in self._open:
            if stream.waiting:
                stream.end()

    async def exchange(self, _: Any, context: Call) -> None:
        """Serve one stream, from its first message to its end."""
        if not self._make_room():
            # A caller that has not written its message yet would only learn that this failed.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HELLO_LEASE):
                    await context.arrived()
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self.streams} streams are open, and no more are accepted",
            )
        stream: _Stream | None = None
        try:
            async with asyncio.timeout(self._limits.hello_seconds) as timeout:
                stream = _Stream(
                    context.peer(),
                    context,
                    context.caller(),
                    self._nonces.open(),
                    timeout,
                )
                self._open.add(stream)
                self._unproven.join(stream)
                await self._converse(stream, context)
        except TimeoutError:
            if stream is not None and stream.writing:
                context.cut()  # a status cannot be sent behind an answer that nobody reads
            if not self._draining:
                await context.abort(*self._why_it_ended(stream))
        finally:
            if stream is not None:
                self._open.discard(stream)
                self._unproven.leave(stream)
                self._proven.leave(stream)
                self._nonces.close(stream.nonces)
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the authority is stopping")

    def _why_it_ended(self, stream: _Stream | None) -> tuple[grpc.StatusCode, str]:
        if stream is not None and stream.proven:
            return (
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                "this machine has more than its share of the streams, and few are left",
            )
        late = f"no evidence was accepted within {self._limits.hello_seconds:g} s"
        why = f"{late}, or this stream had to make room for another"
        return grpc.StatusCode.DEADLINE_EXCEEDED, why

    def _make_room(self) -> bool:
        """Say whether one more stream may be served; if all are open, an unproven one ends."""
        return self.streams < self._limits.streams or self._unproven.make_room()

    async def _converse(self, stream: _Stream, context: Call) -> None:
        while not self._draining:
            stream.waiting = True
            async with self._turn(stream):
                data = await anext(cast("AsyncIterator[bytes]", context), None)
            stream.waiting = False
            if data is None:
                return
            if self._exhausted(stream, len(data)):
                await context.abort(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    "too many messages, or too many bytes, before any evidence was accepted",
                )
            try:
                answer = await self._answer_to(stream, data)
            except CallEndedError:
                raise
            except SdsError as error:
                self._registration.refused(stream.peer, error)
                if error.reason == "request_malformed":  # the stream does not get a second chance
                    await context.abort(
                        grpc.StatusCode.INVALID_ARGUMENT, f"{error.reason}: {error}"
                    )
                answer = wire.refusal_to_wire(
                    error,
                    next_nonce=self._next_nonce(stream),
                    signed_policy=self._registration.policy_for(error),
                )
            except BaseException as error:  # the boundary between one stream and the others
                if not ends_one_thing(error):
                    raise
                report("authority stream", error, peer=stream.peer)
                self._registration.refused(stream.peer, SdsError("a fault of the authority"))
                await context.abort(grpc.StatusCode.INTERNAL, "a fault of the authority")
            del data  # nothing of both counts for anybody while this waits for the next message
            stream.writing = True
            async with asyncio.timeout(self._limits.write_seconds):
                written = [answer.SerializeToString()]
                del answer  # only what is left of its bytes counts while it waits
                await context.write(written.pop())
            stream.writing = False

    def _turn(self, stream: _Stream) -> contextlib.AbstractAsyncContextManager[None]:
        return contextlib.nullcontext() if stream.proven else self._turns.turn(stream)

    def _exhausted(self, stream: _Stream, size: int) -> bool:
        """Say whether a stream that has proven nothing has sent more than it may."""
        if stream.proven:
            return False
        stream.messages += 1
        stream.read_bytes += size
        return (
            stream.messages > _UNPROVEN_MESSAGES
            or stream.read_bytes > 2 * self._limits.message_bytes
        )

    async def _answer_to(self, stream: _Stream, data: bytes) -> ca_pb2.ExchangeResponse:
        request = wire.parse_request(data)
        match request.WhichOneof("request"):
            case "hello":
                return await self._hello(stream, request.hello)
            case "certificates":
                return await self._certificates(stream, request.certificates)
            case "attested_csr":
                return await self._attested_csr(stream, request.attested_csr)
        raise RefusedError(
            "the message has none of hello, certificates and attested_csr",
            reason="request_malformed",
        )

    def _next_nonce(self, stream: _Stream) -> bytes:
        return self._nonces.issue(stream.nonces, now=self._clock.now().monotonic)

    async def _hello(self, stream: _Stream, hello: ca_pb2.Hello) -> ca_pb2.ExchangeResponse:
        stream.connection.heard()
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
        """Run checks 2 and 3: the nonce is this stream's, and the Challenge is still current."""
        now = self._clock.now()
        self._nonces.redeem(stream.nonces, wire.nonce_from_wire(nonce), now=now.monotonic)
        if stream.statement != self._registration.statement():
            raise RefusedError(
                "the authority's key, roots or policy changed",
                advice="say Hello again",
                reason="challenge_stale",
            )

    async def _certificates(
        self, stream: _Stream, request: ca_pb2.CertificateRequest
    ) -> ca_pb2.ExchangeResponse:
        self._registration.check_size(request)  # check 1
        async with self._turn_to_issue(stream):
            self._spend_nonce(stream, request.nonce)
            accepted = self._registration.accept(request, stream.peer)
            self._prove(stream, accepted.claims)
            results = await self._registration.issue(accepted, done=0)
        while len(results) < len(accepted.items):
            async with self._turn_to_issue(stream):
                results += await self._registration.issue(accepted, done=len(results))
        return self._answer(stream, accepted, results)

    async def _attested_csr(
        self, stream: _Stream, request: ca_pb2.AttestedCsr
    ) -> ca_pb2.ExchangeResponse:
        async with self._turn_to_issue(stream):
            self._spend_nonce(stream, request.nonce)
            accepted, result = self._registration.issue_attested_csr(request, stream.peer)
            self._prove(stream, accepted.claims)
        return self._answer(stream, accepted, [result])

    @contextlib.asynccontextmanager
    async def _turn_to_issue(self, stream: _Stream) -> AsyncIterator[None]:
        """Wait for a turn to decide part of a request of this stream.

        Raises:
            CallEndedError: its caller has gone: that comes before its work.
        """
        async with self._issuing.turn(stream.machine, stream.owner):
            await asyncio.sleep(0)
            if stream.context.client_left():
                raise CallEndedError("the caller has gone")
            yield

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

    def _prove(self, stream: _Stream, claims: Claims) -> None:
        """Let stream and connection stay, because evidence was accepted."""
        machine = machine_of(claims, address=stream.owner)
        stream.connection.proved(machine)
        stream.machine = machine
        if self._unproven.leave(stream):
            stream.timeout.reschedule(None)
            now = self._clock.now().monotonic
            for one in self._proven.join(stream, machine, now=now):
                one.end()


def handler(
    service: ExchangeService, answered: Callable[[float], None] | None = None
) -> grpc.GenericRpcHandler:
    """Make the service's handler for gRPC: raw bytes in and out (see ``sds.exchange.wire``).

    Args:
        service: answers the messages.
        answered: is told how many seconds each message waited for its answer.
    """

    async def exchange(requests: Any, context: Any) -> None:
        if answered is not None:
            context = TimedContext(context, answered, stopwatch)
        await service.exchange(requests, context)

    return grpc.method_handlers_generic_handler(
        wire.SERVICE, {"Exchange": grpc.stream_stream_rpc_method_handler(exchange)}
    )
