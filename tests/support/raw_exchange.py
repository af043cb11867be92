"""The exchange by hand: a client that can lie, and a man in the middle.

Both speak raw gRPC, so that a test decides every byte.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc.aio

from sds._proto.sds.ca.v1 import ca_pb2
from sds.authority.channel import TLS_SERVER_NAME, AttestedTls, connect
from sds.exchange import wire
from sds.exchange.challenge import digest_of, lifetime_seconds, new_nonce, request_report_data
from sds.policy.peer_comparison import NO_POLICY_DIGEST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from sds.attestation.evidence import Attester, Evidence
    from sds.ca.tls import TlsIdentity
    from sds.exchange.item import CertificateItem

Response = ca_pb2.ExchangeResponse
Request = ca_pb2.ExchangeRequest


@dataclass
class RawStream:
    """One stream; every message is the test's own."""

    call: Any

    async def send(self, message: Request | bytes) -> None:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        await self.call.write(data)

    async def ask(self, message: Request | bytes) -> Response:
        await self.send(message)
        data = await self.call.read()  # the suite has a time limit of its own
        if data is grpc.aio.EOF:
            raise grpc.aio.AioRpcError(
                await self.call.code(),
                grpc.aio.Metadata(),
                grpc.aio.Metadata(),
                await self.call.details(),
            )
        return Response.FromString(data)

    async def hello(self, nonce: bytes | None = None) -> ca_pb2.Challenge:
        answer = await self.ask(Request(hello=ca_pb2.Hello(nonce=nonce or new_nonce())))
        assert answer.WhichOneof("response") == "challenge", answer
        return answer.challenge

    async def status(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await self.call.code()
        return code


def item_message(item: CertificateItem) -> ca_pb2.Item:
    return ca_pb2.Item(
        csr=item.csr,
        spiffe_id=str(item.identity.spiffe_id),
        dns_names=item.identity.dns_names,
        lifetime_seconds=lifetime_seconds(item),
        signing=item.signing,
    )


async def request(
    nonce: bytes,
    items: Sequence[CertificateItem],
    attester: Attester,
    *,
    sent: Sequence[CertificateItem] | None = None,
    evidence: Evidence | None = None,
) -> Request:
    """A request whose evidence covers ``items`` while ``sent`` goes over."""
    if evidence is None:
        evidence = await attester.attest(
            request_report_data(
                nonce=nonce,
                policy_digest=NO_POLICY_DIGEST,
                digests=[digest_of(item) for item in items],
            )
        )
    return Request(
        certificates=ca_pb2.CertificateRequest(
            nonce=nonce,
            items=[item_message(item) for item in (items if sent is None else sent)],
            evidence=wire.evidence_to_wire(evidence),
            policy_digest=NO_POLICY_DIGEST,
        )
    )


def grpc_credentials(tls: TlsIdentity) -> grpc.ServerCredentials:
    """TLS of gRPC's own server."""
    return grpc.ssl_server_credentials([(tls.key_pem, tls.certificate_pem)])


@contextlib.asynccontextmanager
async def raw_channel(port: int) -> AsyncIterator[Callable[[], RawStream]]:
    """Opens streams on one connection."""
    connection = await connect([f"127.0.0.1:{port}"], AttestedTls(), seconds=5)
    method: Any = connection.channel.stream_stream(wire.EXCHANGE)
    try:
        yield lambda: RawStream(method())
    finally:
        await connection.channel.close()


@contextlib.asynccontextmanager
async def raw_stream(port: int) -> AsyncIterator[RawStream]:
    async with raw_channel(port) as streams:
        yield streams()


@dataclass
class Middle:
    """Ends TLS with a certificate of its own and passes messages on, changed or not.

    ``down`` may change an answer; ``seen`` holds every message that came from the agent.
    """

    upstream: int
    tls: TlsIdentity
    down: Callable[[Response], Response] = lambda response: response
    seen: list[Request] = field(default_factory=list)

    async def handle(self, _: Any, context: Any) -> None:
        async with raw_stream(self.upstream) as stream:
            while (data := await context.read()) is not grpc.aio.EOF:
                self.seen.append(Request.FromString(data))
                answer = self.down(await stream.ask(data))
                await context.write(answer.SerializeToString())

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    wire.SERVICE,
                    {"Exchange": grpc.stream_stream_rpc_method_handler(self.handle)},
                ),
            )
        )
        port = server.add_secure_port("127.0.0.1:0", grpc_credentials(self.tls))
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)


__all__ = ["TLS_SERVER_NAME", "Middle", "RawStream", "raw_channel", "raw_stream", "request"]
