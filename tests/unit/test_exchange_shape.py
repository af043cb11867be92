"""A message with far too many parts is refused before anything is built from it."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds._proto.sds.ca.v1 import ca_pb2
from sds.errors import AuthorityAnswerError, RefusedError
from sds.exchange.message_bounds import check_shape
from sds.exchange.wire import parse_request, parse_response
from tests.support.cost import counted_lines

FULL = ca_pb2.ExchangeRequest(
    certificates=ca_pb2.CertificateRequest(
        nonce=b"n" * 32,
        items=[
            ca_pb2.Item(csr=b"c", spiffe_id="spiffe://a/b", dns_names=["a"] * 100)
            for _ in range(1000)
        ],
        evidence=ca_pb2.Evidence(kind="sev-snp", report=b"r", certificates=[b"c"] * 16),
        policy_digest=b"d",
        policy_epoch=2**64 - 1,
        signed_policy=b"p",
    )
)


def field(number: int, content: bytes) -> bytes:
    size = len(content)
    length = bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes(length) + bytes([size]) + content


def test_the_largest_request_that_is_allowed_passes() -> None:
    assert parse_request(FULL.SerializeToString()) == FULL


@pytest.mark.parametrize(
    "data",
    [
        field(2, field(2, b"") * 2_000_000),  # items
        field(2, field(2, field(3, b"") * 2_000_000)),  # DNS names of one item
        field(2, field(2, b"") * 4_000) * 32,  # the items of requests that become one
        field(2, field(3, field(3, b"") * 2_000_000)),  # certificates of evidence
        field(2, b"") * 2_000_000,  # the request itself, again and again
        field(9, b"") * 2_000_000,  # what this version does not know
        field(1, b"\x20\x01" * 1_000_000),  # a number inside Hello is fine; below is the length
        b"\x0b" * 2_000_000,  # groups
        b"\xff" * 2_000_000,
        b"\x12\xff\xff\xff\xff\x0f",
        b"\x12",
        b"\x09\x00",
        b"\x0d\x00",
    ],
)
def test_too_many_parts_are_refused_at_once(data: bytes) -> None:
    with counted_lines() as lines:
        if data.startswith(b"\x0a"):
            check_shape(data)  # Hello has no parts that become objects
        else:
            with pytest.raises(RefusedError) as caught:
                parse_request(data)
            assert caught.value.reason == "request_malformed"
    assert lines.count < 500_000  # for two million parts


def test_parts_of_parts_are_bounded_together() -> None:
    """Four thousand items of four hundred names took the authority three quarters of a second."""
    with counted_lines() as largest:
        check_shape(FULL.SerializeToString())
    with counted_lines() as lines, pytest.raises(RefusedError, match="fields in all"):
        check_shape(field(2, field(2, field(3, b"") * 400) * 4_000))
    assert lines.count < 1.5 * largest.count


@given(st.binary(max_size=200))
def test_any_bytes_are_counted_or_refused(data: bytes) -> None:
    with contextlib.suppress(RefusedError):
        check_shape(data)


@given(st.lists(st.text(max_size=5), max_size=5), st.binary(max_size=20), st.integers(0, 2**32 - 1))
def test_whatever_protobuf_writes_passes(names: list[str], csr: bytes, number: int) -> None:
    message = ca_pb2.ExchangeRequest(
        certificates=ca_pb2.CertificateRequest(
            items=[ca_pb2.Item(csr=csr, dns_names=names, lifetime_seconds=number)],
            policy_epoch=number,
        )
    )
    assert parse_request(message.SerializeToString()) == message


@pytest.mark.parametrize(
    "data",
    [
        field(1, field(9, b"") * 2_000_000),  # covered nonces
        field(1, field(5, b"") * 2_000_000),  # roots
        field(1, field(3, field(3, b"") * 2_000_000)),  # certificates of evidence
        field(2, field(1, b"") * 2_000_000),  # results
    ],
)
def test_an_answer_of_anybody_with_too_many_parts_is_refused(data: bytes) -> None:
    """Whoever answers at the authority's address has not proven anything yet."""
    with pytest.raises(AuthorityAnswerError):
        parse_response(data)
