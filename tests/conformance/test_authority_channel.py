"""An authority's channel: where nobody answers, and where TLS fails."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import socket
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from sds._proto.sds.ca.v1 import ca_pb2
from sds.authority import channel
from sds.authority.attested import AttestedAuthority, AuthoritySettings
from sds.authority.channel import TLS_SERVER_NAME, VerifiedTls, connect, verified_channel
from sds.authority.session import Session
from sds.clock import SystemClock
from sds.errors import AuthorityAnswerError, AuthorityUnavailableError
from tests.support.certificates import Wish, ca_wish, self_signed
from tests.support.door_client import HEADERS, RST, SETTINGS, frame
from tests.support.process import PATIENCE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sds.attestation.evidence import Claims, Evidence, ReportData


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener with a full queue: the kernel drops what would connect to it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host, port = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex((host, port))
        yield f"{host}:{port}"


async def test_a_connection_that_nobody_answers_is_given_up_long_before_grpcs_20_seconds(
    silent: str,
) -> None:
    # As after a roll of istiod: the address of the replica that went is still the one we have.
    root = self_signed(ca_wish("root")).certificate.public_bytes(Encoding.PEM)
    async with verified_channel(silent, root, "istiod.istio-system.svc", seconds=5) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/a/b")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=15)
    # By the connection's limit, and not by the call's.
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("swallows", ["packets", "the handshake"])
async def test_an_address_that_swallows_takes_no_time_from_the_next_one(
    swallows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where IPv6 leads nowhere, or the first of a name's replicas stands still."""
    signer = self_signed(dataclasses.replace(ca_wish("any"), names=(x509.DNSName("any"),)))
    key = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "tls.pem").write_bytes(signer.certificate.public_bytes(Encoding.PEM) + key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "tls.pem")
    with contextlib.ExitStack() as stack:
        mute = stack.enter_context(socket.socket())
        mute.bind(("127.0.0.2", 0))
        mute.listen(0 if swallows == "packets" else 64)
        place = mute.getsockname()
        for _ in range(4 if swallows == "packets" else 0):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(place)

        async def resolved(_host: str, _port: int) -> list[str]:
            return ["127.0.0.2", "127.0.0.3", "127.0.0.1"]

        monkeypatch.setattr(channel, "_resolved", resolved)
        async with await asyncio.start_server(_hang_up, "127.0.0.1", place[1], ssl=tls):
            der = await channel._served_certificate(f"ca.example.org:{place[1]}", 60)
    assert der == signer.der


async def test_of_addresses_that_all_fail_the_last_failure_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def resolved(_host: str, _port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    monkeypatch.setattr(channel, "_resolved", resolved)
    with pytest.raises(AuthorityUnavailableError, match="does not answer: ") as caught:
        await channel._served_certificate("ca.example.org:1", 60)
    assert "Errno" not in str(caught.value)


NAME = "ca.example.org"
NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("leaf", "root", "said"),
    [
        ({"names": (x509.DNSName("ca.example.com"),)}, "ours", "authority.tls.server_name"),
        ({}, "theirs", "authority.tls.root"),
        ({}, "of the same name", "authority.tls.root"),
        ({"not_after": NOW - timedelta(hours=1)}, "ours", "renew it"),
        ({"not_before": NOW + timedelta(hours=1)}, "ours", "clocks"),
        (None, "ours", "authority.addresses"),
    ],
)
async def test_a_failure_of_tls_names_the_field_to_look_at(
    leaf: dict[str, Any] | None, root: str, said: str
) -> None:
    days: dict[str, Any] = {
        "not_before": NOW - timedelta(days=2),
        "not_after": NOW + timedelta(days=2),
    }
    signer, namesake, theirs = (
        self_signed(dataclasses.replace(ca_wish(name), **days))
        for name in ("ours", "ours", "theirs")
    )
    trusted = {"ours": signer, "of the same name": namesake, "theirs": theirs}[root]
    server = grpc.aio.server()
    if leaf is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        wish = Wish(names=(x509.DNSName(NAME),), **days)
        served = signer.issue(dataclasses.replace(wish, **leaf))
        key = served.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = served.certificate.public_bytes(Encoding.PEM)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, chain)]))
    await server.start()
    tls = VerifiedTls(roots=trusted.certificate.public_bytes(Encoding.PEM), server_name=NAME)
    connection = await connect([f"127.0.0.1:{port}"], tls, seconds=5)
    session = Session(address="the address", connection=connection)
    await session.start()
    with pytest.raises(AuthorityUnavailableError) as caught:
        await session.ask(ca_pb2.ExchangeRequest())
    assert said in caught.value.advice
    fields = {"authority.tls.server_name", "authority.tls.root", "authority.addresses"}
    assert {field for field in fields if field in str(caught.value)} == fields & {said}
    await session.close()
    await server.stop(None)


async def test_an_answer_of_who_may_be_anybody_is_read_within_a_bound() -> None:
    """Before its evidence was verified, whoever is on the network may answer as the authority."""

    class Call:
        async def write(self, message: bytes) -> None:
            """Take it."""

        async def read(self) -> bytes:
            roots = [b"r" * 1_000_000] * 5
            challenge = ca_pb2.Challenge(nonce=b"n" * 32, roots=roots)
            return ca_pb2.ExchangeResponse(challenge=challenge).SerializeToString()

    connection: Any = None
    session = Session(address="the address", connection=connection)
    session._call = Call()
    with pytest.raises(AuthorityAnswerError, match="at most 4194304 are read"):
        await session.ask(ca_pb2.ExchangeRequest(hello=ca_pb2.Hello(nonce=b"n" * 32)))


@pytest.mark.parametrize("ends", [False, True])
async def test_what_who_may_be_anybody_says_is_logged_within_a_bound(*, ends: bool) -> None:
    words = "x" * 16_000

    class Call:
        async def write(self, message: bytes) -> None:
            """Take it."""

        async def read(self) -> Any:
            if ends:
                return grpc.aio.EOF
            nothing = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.ABORTED, nothing, nothing, words)

        async def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.ABORTED

        async def details(self) -> str:
            return words

    connection: Any = None
    session = Session(address="the address", connection=connection)
    session._call = Call()
    with pytest.raises(AuthorityUnavailableError, match="ABORTED x") as caught:
        await session.ask(ca_pb2.ExchangeRequest())
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("answer", [b"", frame(RST, 0, 1, b"\0\0\0\x08")])
async def test_a_connection_that_was_given_up_is_closed_at_once(
    answer: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was read until the next full collection of garbage, whatever still came on it."""
    day = timedelta(days=1)
    name = x509.DNSName(TLS_SERVER_NAME)
    served = self_signed(Wish(names=(name,), not_before=NOW - day, not_after=NOW + day))
    (tmp_path / "key").write_bytes(
        served.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "chain").write_bytes(served.certificate.public_bytes(Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")
    context.set_alpn_protocols(["h2"])
    ended: list[asyncio.Event] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ended.append(over := asyncio.Event())
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            writer.write(frame(SETTINGS, 0, 0))
            await reader.readuntil(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            while head := await reader.readexactly(9):
                if head[3] == HEADERS:
                    writer.write(answer)
                await reader.readexactly(int.from_bytes(head[:3]))
        over.set()

    evidence: Any = None
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    client = AttestedAuthority(
        AuthoritySettings(addresses=(f"127.0.0.1:{port}",), connect_seconds=1.0),
        attester=evidence,
        verifier=AcceptsNobody(),
        clock=SystemClock(),
    )
    caplog.set_level(logging.CRITICAL)  # it keeps errors, and with them connections
    gc.disable()
    try:
        with pytest.raises(AuthorityUnavailableError):
            await client.roots()
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert len(ended) == 2  # a bare handshake, and the connection
            for over in ended:
                await over.wait()
    finally:
        gc.enable()
        server.close()


class AcceptsNobody:
    def verify(self, evidence: Evidence, *, data: ReportData, now: datetime) -> Claims:
        raise AssertionError("no evidence comes")
