"""TLS on one socket: the handshake, what clients may send, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from sds.errors import ConfigurationError, Http2Error
from sds.transport import hello_bound
from sds.transport.client_hello import GROUPS, group_for
from sds.transport.hello_bound import HelloBound
from sds.transport.tls_records import MOST_RECORDS, RecordCutter
from sds.transport.tls_settings import ServerTlsSettings, server_settings
from sds.transport.tls_socket import READ_BYTES, TlsEndpoints
from tests.support.tls_link import IDENTITY, TlsLink, client_context, identity, tls_link

if TYPE_CHECKING:
    from pathlib import Path

V12 = {"maximum_version": ssl.TLSVersion.TLSv1_2}


HELLO_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a ServerHello that is a HelloRetryRequest (RFC 8446, section 4.1.3)."""


def handshake_record(data: bytes) -> bytes:
    return b"\x16\x03\x03" + len(data).to_bytes(2, "big") + data


def hello_without_a_share() -> bytes:
    """A ClientHello of TLS 1.3 that supports P-256, sends no key share and says early data."""
    extensions = b"".join(
        kind.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data
        for kind, data in (
            (43, b"\2\3\4"),  # supported_versions
            (10, b"\0\2\0\x17"),  # supported_groups
            (13, b"\0\2\4\3"),  # signature_algorithms
            (51, b"\0\0"),  # key_share
            (42, b""),  # early_data
        )
    )
    body = b"\3\3" + bytes(32) + b"\0" + b"\0\2\x13\1" + b"\1\0"
    body += len(extensions).to_bytes(2, "big") + extensions
    return b"\1" + len(body).to_bytes(3, "big") + body


def broken(link: TlsLink) -> str:
    """Why the server ended the connection."""
    with pytest.raises(Http2Error) as raised:
        link.take()
    return raised.value.message


# --- the handshake ------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
async def test_a_handshake_in_pieces(piece: int) -> None:
    with tls_link() as link:
        link.shake(piece=piece)
        link.client.write(b"hello")
        assert link.push(piece=piece) == b"hello"
        link.server.write([b"wor", memoryview(b"ld")])
        assert link.read() == b"world"
        assert link.client.selected_alpn_protocol() == "h2"
        assert link.endpoints.begun == link.endpoints.done == 1
        assert link.endpoints.failed == link.endpoints.left == 0


async def test_what_comes_with_the_end_of_the_handshake_is_read_at_once() -> None:
    """Nothing stays inside OpenSSL while the socket is silent."""
    with tls_link() as link:
        for _ in range(3):
            try:
                link.client.do_handshake()
            except ssl.SSLWantReadError:
                link.push()
                link.pull()
        link.client.write(b"x" * 40_000)
        assert link.push() == b"x" * 40_000


async def test_output_waits_for_the_handshake_and_is_counted() -> None:
    with tls_link() as link:
        link.server.write([b"early", b"bird"])
        assert (link.server.unsent, link.server.written, link.server.held) == (9, 9, 9)
        link.server.write([b"!"])
        link.shake()
        assert link.server.unsent == 0
        assert link.read() == b"earlybird!"


async def test_the_user_is_told_of_the_end_of_the_handshake_and_only_then() -> None:
    told: list[Any] = []
    with tls_link(endpoints=TlsEndpoints(IDENTITY.settings, told.append)) as link:
        with pytest.raises(ssl.SSLWantReadError):
            link.client.do_handshake()
        link.push()
        assert told == []
        link.pull()
        link.shake()
        assert told == [link.user]


@pytest.mark.parametrize("when", ["with its hello", "half-way"])
async def test_a_client_that_has_gone_costs_no_handshake(when: str) -> None:
    with tls_link() as link:
        with pytest.raises(ssl.SSLWantReadError):
            link.client.do_handshake()
        hello = link.outgoing.read()
        if when == "half-way":
            link.wire.send(hello[:50])
            assert link.take() == b""
        begun = link.endpoints.begun
        link.wire.send(hello[50 if begun else 0 :])
        link.wire.shutdown(socket.SHUT_WR)
        assert link.take() == b""
        assert link.endpoints.begun == begun
        assert link.endpoints.left == 1
        assert link.server.is_closed()
        assert link.wire.recv(100) == b""  # no answer to the hello


@pytest.mark.parametrize("sent", [0, 50, 10_000])
async def test_a_client_that_leaves_without_a_word_is_counted_once(sent: int) -> None:
    with tls_link() as link:
        with pytest.raises(ssl.SSLWantReadError):
            link.client.do_handshake()
        link.wire.send(link.outgoing.read()[:sent])
        link.take()
        link.wire.close()
        for _ in range(3):
            assert link.look() == b""
        assert (link.endpoints.done, link.endpoints.failed, link.endpoints.left) == (0, 0, 1)


async def test_what_breaks_after_the_handshake_is_no_failed_handshake() -> None:
    with tls_link() as link:
        link.shake()
        link.wire.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert "TLS: " in broken(link)
        assert (link.endpoints.done, link.endpoints.failed, link.endpoints.left) == (1, 0, 0)


async def test_a_new_certificate_is_for_new_connections() -> None:
    first, second = identity(), identity()
    current = {"now": first}

    def settings() -> ServerTlsSettings:
        return current["now"].settings()

    endpoints = TlsEndpoints(settings)
    with tls_link(endpoints=endpoints) as one, tls_link(endpoints=endpoints) as two:
        one.shake()
        current["now"] = second
        two.shake()
        for link, expected in ((one, first), (two, second)):
            der = link.client.getpeercert(binary_form=True) or b""
            assert ssl.DER_cert_to_PEM_cert(der).encode() == expected.certificate_pem
            link.client.write(b"x")
            assert link.push() == b"x"


async def test_no_session_outlives_its_connection() -> None:
    """OpenSSL would keep 20,480 of TLS 1.2 for each group, and resume them."""
    settings = identity().settings()
    for group, offer in itertools.product(GROUPS.values(), ({}, V12)):
        context = client_context(**offer)
        context.set_ecdh_curve(group)
        with tls_link(context, endpoints=TlsEndpoints(lambda: settings)) as link:
            with contextlib.suppress(Http2Error, ssl.SSLError):
                link.shake()
                link.server.write([b"x"])
                assert link.read() == b"x"
                assert link.client.session is None or not link.client.session.has_ticket
            link.server.close()
    assert [one.session_stats()["number"] for one in settings.by_group.values()] == [0, 0, 0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "offer",
    [
        {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1},
        {"alpn": []},
        {"alpn": ["http/1.1"]},
        V12,
    ],
)
async def test_what_a_client_must_offer(offer: dict[str, Any]) -> None:
    context = client_context(**offer)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with tls_link(context) as link:
        with pytest.raises((Http2Error, ssl.SSLError)):
            link.shake()
        assert link.endpoints.failed == 1
        link.server.close()
        assert link.server.is_closed()


async def test_no_client_chooses_an_expensive_group() -> None:
    """P-521 costs ten times as much; with ffdhe8192 it would be hundreds of times."""
    context = client_context()
    context.set_ecdh_curve("secp521r1")
    with tls_link(context) as link:
        with pytest.raises((Http2Error, ssl.SSLError)):
            link.shake()
        assert link.endpoints.failed == 1


@pytest.mark.parametrize("group", ["X25519", "prime256v1", "secp384r1"])
async def test_a_client_gets_the_group_with_which_it_began(group: str) -> None:
    context = client_context()
    context.set_ecdh_curve(group)
    with tls_link(context) as link:
        with pytest.raises(ssl.SSLWantReadError):
            link.client.do_handshake()
        hello = link.outgoing.read()
        assert group_for(hello[5:]) == group
        link.wire.send(hello)
        link.take()
        link.pull()
        link.client.do_handshake()  # it took one round trip
        link.shake()


async def test_a_python_that_cannot_limit_a_server_to_a_group_serves_with_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Python 3.11.2 does for X25519; clients that begin with it take a round trip more."""
    limit = ssl.SSLContext.set_ecdh_curve

    def old(context: ssl.SSLContext, name: str) -> None:
        if name == "X25519":
            raise ssl.SSLError("[EC: UNKNOWN_GROUP] unknown group")
        limit(context, name)

    monkeypatch.setattr(ssl.SSLContext, "set_ecdh_curve", old)
    settings = server_settings(certificate_pem=IDENTITY.certificate_pem, key_pem=IDENTITY.key_pem)
    assert set(settings.by_group) == {"prime256v1", "secp384r1"}
    with tls_link(endpoints=TlsEndpoints(lambda: settings)) as link:
        link.shake()
        assert link.endpoints.failed == 0


def test_any_hello_gives_a_group() -> None:
    context = client_context()
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="a")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()[5:]
    assert group_for(hello) == "X25519"
    chosen = random.Random(3)
    for size in range(len(hello)):
        assert group_for(hello[:size]) in GROUPS.values()
        changed = bytearray(hello)
        changed[size] = chosen.randrange(256)
        assert group_for(changed) in GROUPS.values()


# --- what clients send --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + bytes(100),
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x15\x03\x01\x00\x02\x01\x5a" * 1000,
        b"\x17\x03\x03\x00\x20" + bytes(32),
        b"\x16\x03\x01\x00\x00" * 2000,
        b"\x16\x03\x01\x00\x01\x01" * 2000,
        b"\x16\x03\x01\x40\x00" + b"\x02\x00\x00\x00" * 4096,
        bytes(10_000),
    ],
)
async def test_plain_text_and_broken_records_end_the_connection(data: bytes) -> None:
    with tls_link() as link:
        link.wire.send(data)
        assert broken(link).startswith("TLS: ")
        assert link.endpoints.failed == 1
        link.server.write([b"nothing more is said"])
        link.server.close()
        assert link.server.is_closed()


async def test_a_broken_record_is_answered_by_an_alert() -> None:
    with tls_link() as link:
        link.shake()
        link.client.write(b"x" * 100)
        data = bytearray(link.outgoing.read())
        data[-1] ^= 1
        link.wire.send(data)
        assert "bad record mac" in broken(link)
        with pytest.raises(ssl.SSLError, match="ALERT_BAD_RECORD_MAC"):
            link.read()


async def test_a_stranger_takes_no_memory_for_a_long_hello() -> None:
    """OpenSSL would take 128 KiB for these 20 bytes."""
    data = b"\x16\x03\x01\x00\x10\x01" + (131_000).to_bytes(3, "big") + bytes(12)
    with tls_link() as link:
        link.wire.send(data)
        assert "has 131000 bytes" in broken(link)
        assert link.endpoints.begun == 0


def checked(data: bytes, piece: int) -> None:
    bound = HelloBound()
    for at in range(0, len(data), piece):
        bound.check(data[at : at + piece])


@pytest.mark.parametrize("head", range(1, 20))
def test_a_long_message_is_noticed_wherever_it_is_cut(head: int) -> None:
    first = b"\x16\x03\x01\x00\x06\x01\x00\x00\x02ab"
    compatibility = b"\x14\x03\x03\x00\x01\x01"
    long = b"\x16\x03\x01\x00\x02\x01\x00\x16\x03\x01\x00\x08\x40\x01abcdef"
    for data in (long, first + long, first + compatibility + long):
        with pytest.raises(Http2Error, match="has 16385 bytes"):
            checked(data, head)


def test_what_is_encrypted_is_not_looked_at() -> None:
    HelloBound().check((b"\x17\x03\x03\x00\x20" + b"\x01\xff\xff\xff" * 8) * 8)


async def test_a_stranger_takes_no_memory_for_a_long_second_hello() -> None:
    """After a HelloRetryRequest, OpenSSL skips data before the second hello as early data."""
    long = handshake_record(b"\x01" + (131_000).to_bytes(3, "big") + bytes(12))
    with tls_link() as link:
        link.wire.send(handshake_record(hello_without_a_share()))
        assert link.take() == b""
        link.pull()
        assert HELLO_RETRY in link.incoming.read()
        link.wire.send(b"\x17\x03\x03\x00\x28" + bytes(40) + long)
        assert "has 131000 bytes" in broken(link)


async def test_nothing_that_comes_first_is_kept_for_long() -> None:
    """Whatever message a stranger begins with, it is complete soon, or OpenSSL judges it."""
    for kind in range(256):
        endless = handshake_record(bytes([kind, 0, 0, 1]) + bytes(16_000))
        with tls_link() as link:
            with contextlib.suppress(ConnectionError, Http2Error):
                for _ in range(4):
                    link.wire.send(endless)
                    link.take()
                raise AssertionError(f"message {kind}: the server reads on")
            assert link.server.held < 3 * hello_bound.MOST_BYTES


# --- the work of one look -----------------------------------------------------------------------


async def test_one_look_gives_openssl_a_bounded_number_of_records() -> None:
    """KeyUpdates, empty records and single bytes: counted before OpenSSL sees them."""
    with tls_link() as link:
        link.shake()
        for _ in range(600):
            link.client.write(b"x")
        link.wire.send(link.outgoing.read())
        got = [link.look()]
        assert got[0] == b"x" * MOST_RECORDS
        assert link.server.held > 5_000
        while link.server.pending:
            got.append(link.look())
        assert b"".join(got) == b"x" * 600
        assert len(got) == -(-600 // MOST_RECORDS)


async def test_one_look_takes_a_bounded_number_of_bytes() -> None:
    with tls_link() as link:
        link.shake()
        link.client.write(bytes(100_000))
        link.wire.send(link.outgoing.read())
        most = READ_BYTES + 17 * 1024
        while data := link.look():
            assert len(data) <= most


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 1000])
def test_records_are_counted_wherever_they_are_cut(piece: int) -> None:
    data = b"".join(
        b"\x17\x03\x03" + (number % 300).to_bytes(2, "big") + bytes(number % 300)
        for number in range(500)
    )
    cutter, at, calls = RecordCutter(), 0, 0
    while at < len(data):
        calls += 1
        at += cutter.cut(data[at : at + piece])
    assert at == len(data)
    assert calls >= 500 // MOST_RECORDS
    assert cutter.cut(b"\x17\x03\x03\x00\x00" * 65) == 64 * 5


# --- the end ------------------------------------------------------------------------------------


async def test_close_says_so_and_abort_does_not() -> None:
    for closes in (True, False):
        with tls_link() as link:
            link.shake()
            link.server.write([b"last"])
            (link.server.close if closes else link.server.abort)()
            link.server.close()
            assert link.server.is_closed()
            link.pull()
            link.incoming.write_eof()
            assert link.client.read(100) == b"last"
            if closes:
                assert link.client.read(100) == b""
            else:
                with pytest.raises(ssl.SSLEOFError):
                    link.client.read(100)
            await asyncio.sleep(0)
            assert link.user.told == ["lost"]


@pytest.mark.parametrize("way", ["close_notify", "FIN"])
async def test_what_came_before_the_clients_end_is_read(way: str) -> None:
    with tls_link() as link:
        link.shake()
        link.client.write(b"last")
        if way == "close_notify":
            with pytest.raises(ssl.SSLWantReadError):
                link.client.unwrap()
        data = link.outgoing.read()
        link.wire.send(data)
        link.wire.shutdown(socket.SHUT_WR)
        assert link.take() == b"last"
        assert link.server.is_closed()
        link.server.write([b"nobody is there"])
        await asyncio.sleep(0)
        assert link.user.told == ["lost"]


async def test_output_that_the_kernel_does_not_take_waits() -> None:
    with tls_link() as link:
        link.shake()
        size = 0
        while not link.server.unsent:
            link.server.write([bytes(50_000)])
            size += 50_000
        assert link.server.backlog > 0
        link.server.close()
        got = 0
        while got < size:
            got += len(link.read())
            await asyncio.sleep(0)
        assert got == size


# --- keys ---------------------------------------------------------------------------------------


def test_the_key_passes_through_no_file_that_stays(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    fresh = identity()
    fresh.settings()
    assert fresh.settings() is fresh.settings()
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert list(tmp_path.iterdir()) == []
    assert "PRIVATE" not in repr(fresh)
    with pytest.raises(ConfigurationError, match="OpenSSL does not accept"):
        server_settings(certificate_pem=fresh.certificate_pem, key_pem=identity().key_pem)


# --- anything -----------------------------------------------------------------------------------


async def test_random_changes_of_what_a_stranger_sends_raise_only_our_error() -> None:
    chosen = random.Random(7)
    for number in range(400):
        with tls_link(client_context(**(V12 if number % 2 else {}))) as link:
            rounds = 0
            while rounds < 6 and not link.server.is_closed():
                rounds += 1
                try:
                    link.client.do_handshake()
                    link.client.write(chosen.randbytes(chosen.randrange(1, 2_000)))
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError:
                    break
                data = bytearray(link.outgoing.read())
                for _ in range(chosen.randrange(3)):
                    if data:
                        data[chosen.randrange(len(data))] = chosen.randrange(256)
                if data:
                    link.wire.send(data)
                try:
                    link.take()
                except Http2Error:
                    link.server.close()
                    assert link.server.is_closed()
                    break
                link.pull()
