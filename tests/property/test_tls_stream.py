"""TLS on one socket, whatever the network makes of the byte stream.

Invariant: what the client wrote is what the server reads, in order, however the bytes are cut and
however many records they are; and any bytes at all give plaintext, or our own error.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from hypothesis import given, settings
from hypothesis import strategies as st

from sds.errors import Http2Error
from sds.transport.hello_bound import HelloBound
from sds.transport.tls_records import RecordCutter
from tests.support.tls_link import TlsLink, tls_link


def passed_on(link: TlsLink, cuts: list[int]) -> bytes:
    """Pass on what the client wants to send, in pieces of these sizes; what the server read."""
    data, taken, number = link.outgoing.read(), b"", 0
    while data:
        size = cuts[number % len(cuts)]
        link.wire.sendall(data[:size])
        data, number = data[size:], number + 1
        taken += link.take()
    return taken


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 3_000), min_size=1, max_size=8),
    st.lists(st.binary(min_size=1, max_size=20_000), max_size=6),
    st.binary(max_size=50_000),
)
def test_any_cut_of_the_stream(cuts: list[int], messages: list[bytes], answer: bytes) -> None:
    async def run() -> None:
        with tls_link() as link:
            link.server.write([answer])
            taken, done = b"", False
            while not done:
                with contextlib.suppress(ssl.SSLWantReadError):
                    link.client.do_handshake()
                    done = True
                taken += passed_on(link, cuts)
                link.pull()
            for message in messages:
                link.client.write(message)
                taken += passed_on(link, cuts)
            assert taken == b"".join(messages)
            assert not link.server.pending
            assert link.read() == answer

    asyncio.run(run())


@settings(max_examples=200)
@given(
    st.lists(st.binary(min_size=1, max_size=2_000), min_size=1, max_size=5),
    st.sampled_from([b"", b"\x16\x03\x01", b"\x17\x03\x03"]),
)
def test_any_bytes(pieces: list[bytes], kind: bytes) -> None:
    async def run() -> None:
        with tls_link() as link, contextlib.suppress(Http2Error):
            for piece in pieces:
                head = kind and kind + len(piece).to_bytes(2, "big")
                with contextlib.suppress(ConnectionError):
                    link.wire.sendall(head + piece)
                assert link.take() == b""

    asyncio.run(run())


@given(st.binary(max_size=3_000), st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_lengths_are_read_alike_however_they_are_cut(data: bytes, cuts: list[int]) -> None:
    def refusal(sizes: list[int]) -> str:
        bound, at, number = HelloBound(), 0, 0
        try:
            while at < len(data):
                bound.check(data[at : at + sizes[number % len(sizes)]])
                at += sizes[number % len(sizes)]
                number += 1
        except Http2Error as error:
            return error.message
        return ""

    assert refusal(cuts) == refusal([len(data) + 1])
    cutter, at, number = RecordCutter(), 0, 0
    while at < len(data):
        size = cutter.cut(data[at : at + cuts[number % len(cuts)]])
        assert size > 0
        at += size
        number += 1
