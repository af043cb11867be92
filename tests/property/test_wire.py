"""The parsers that face the socket: right on what is valid, safe on what is not."""

from __future__ import annotations

import contextlib
import random
import tracemalloc
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from envoy.service.discovery.v3 import discovery_pb2
from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sds._proto.sds.serving.v1 import request_pb2
from sds.errors import LimitError, MalformedRequestError, ProtocolError
from sds.serving import client_node as nodes
from sds.serving import protobuf_fields
from sds.serving.wire import (
    MAX_ERROR_CHARACTERS,
    length_delimited,
    parse_delta_request,
    parse_discovery_request,
)
from sds.varint import read_varint, write_varint
from tests.support.fuzz_target import (
    MAX_NAMES,
    frames_of,
    mutate,
    one_conversation,
    one_input,
    seeds,
)

if TYPE_CHECKING:
    from collections.abc import Callable

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.lists(words, max_size=10)


@given(
    names,
    st.tuples(words, words, words),
    st.none() | words,
    st.none() | words,
    st.binary(max_size=300),
)
def test_a_discovery_request_reads_as_the_official_library_reads_it(
    resource_names: list[str],
    texts: tuple[str, str, str],
    error: str | None,
    node: str | None,
    padding: bytes,
) -> None:
    version, type_url, nonce = texts
    message = discovery_pb2.DiscoveryRequest(
        resource_names=resource_names,
        version_info=version,
        type_url=type_url,
        response_nonce=nonce,
    )
    if error is not None:
        message.error_detail.CopyFrom(status_pb2.Status(code=3, message=error))
    if node is not None:
        message.node.id = node
        message.node.cluster = "cluster"
        message.node.user_agent_name = "agent"
        message.node.extensions.add(name=padding.hex())
    parsed = parse_discovery_request(message.SerializeToString(), max_names=MAX_NAMES)
    assert parsed.request.names == tuple(resource_names)
    assert parsed.type_url == type_url
    assert parsed.request.nonce == nonce
    assert parsed.request.error == error
    assert (parsed.node is None) == (node is None)
    if parsed.node is not None:
        assert (parsed.node.id, parsed.node.cluster) == (node, "cluster")
        assert parsed.node.user_agent == "agent"


@given(names, names, st.dictionaries(words, words, max_size=8), words, st.none() | words)
def test_a_delta_request_reads_as_the_official_library_reads_it(
    subscribe: list[str],
    unsubscribe: list[str],
    initial: dict[str, str],
    nonce: str,
    error: str | None,
) -> None:
    message = discovery_pb2.DeltaDiscoveryRequest(
        resource_names_subscribe=subscribe,
        resource_names_unsubscribe=unsubscribe,
        initial_resource_versions=initial,
        response_nonce=nonce,
        type_url="t",
    )
    if error is not None:
        message.error_detail.CopyFrom(status_pb2.Status(code=3, message=error))
    parsed = parse_delta_request(message.SerializeToString(), max_names=MAX_NAMES)
    assert parsed.request.subscribe == tuple(subscribe)
    assert parsed.request.unsubscribe == tuple(unsubscribe)
    assert parsed.request.initial_versions == initial
    assert parsed.request.nonce == nonce
    assert parsed.request.error == error
    assert parsed.type_url == "t"


@given(st.binary(max_size=400))
@example(b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f")
@example(b"\x1a\x03\xff\xfe\xfd")
@settings(max_examples=500)
def test_any_bytes(data: bytes) -> None:
    one_input(data)


@given(st.integers(min_value=0))
@settings(max_examples=300)
def test_mutated_requests(seed: int) -> None:
    source = random.Random(seed)
    for data in seeds():
        one_input(mutate(data, source))
    for data in frames_of(seeds()):
        one_conversation(mutate(data, source))


@pytest.mark.parametrize("parse", [parse_discovery_request, parse_delta_request])
@pytest.mark.parametrize(
    "data",
    [
        length_delimited(3, b"n") * 1_000_000,
        length_delimited(5, length_delimited(1, b"n")) * 500_000,
        length_delimited(3, b"x" * 4_000_000),
        length_delimited(2, b"\x0a\x01x" * 1_000_000),
        length_delimited(1, b"\x0a\x01x" * 1_000_000),
        length_delimited(6, length_delimited(2, b"e" * 4_000_000)),
        length_delimited(7, length_delimited(2, b"e" * 4_000_000)),
        b"\x08\x01" * 100_000,
        b"\x80" * 1_000_000,
    ],
)
def test_memory_stays_bounded(parse: Callable[..., object], data: bytes) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(ProtocolError):
            parse(data, max_names=MAX_NAMES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 1024


def test_what_is_over_a_limit_and_what_is_malformed_are_told_apart() -> None:
    with pytest.raises(LimitError, match="more than 50"):
        parse_discovery_request(length_delimited(3, b"n") * 51, max_names=MAX_NAMES)
    with pytest.raises(LimitError, match="5000 bytes"):
        parse_discovery_request(length_delimited(3, b"n" * 5000), max_names=MAX_NAMES)
    for bad in (b"\x00", b"\x1b\x1c", b"\x1a\x05abc", b"\x0d\x00", b"\x1a", b"\x1a\x01\xff"):
        with pytest.raises(MalformedRequestError):
            parse_discovery_request(bad, max_names=MAX_NAMES)
    with pytest.raises(MalformedRequestError, match="xdstp"):
        parse_discovery_request(length_delimited(7, b""), max_names=MAX_NAMES)
    node = length_delimited(3, b"\xff attested-sds.validator")
    with pytest.raises(MalformedRequestError, match="metadata"):
        parse_discovery_request(length_delimited(2, node), max_names=MAX_NAMES)


def test_metadata_is_counted_before_it_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 1 MiB of it comes in one piece, as half a million fields or as 900 deep values."""
    built: Counter[str] = Counter()
    build = protobuf_fields.message

    def counted(kind: Any, data: bytes, what: str) -> Any:
        built[kind.DESCRIPTOR.name] += 1
        return build(kind, data, what)

    monkeypatch.setattr("sds.serving.client_node.message", counted)
    key = length_delimited(1, nodes.VALIDATOR_KEY.encode())
    deep = length_delimited(5, b"\x0a\x00" * 400)
    ours = [length_delimited(1, key + length_delimited(2, deep))] * 900
    ours.append(length_delimited(1, key + length_delimited(2, length_delimited(3, b"spiffe"))))
    node = length_delimited(3, b"".join(ours))
    parsed = parse_discovery_request(length_delimited(2, node), max_names=MAX_NAMES)
    assert parsed.node is not None
    assert parsed.node.wants_spiffe_validator
    assert built["Value"] == built["Metadata"] == 1
    built.clear()
    node = length_delimited(3, ours[-1] + length_delimited(1, b"") * nodes.MAX_METADATA_FIELDS)
    with pytest.raises(LimitError, match="more than 1000 fields"):
        parse_discovery_request(length_delimited(2, node), max_names=MAX_NAMES)
    assert "Metadata" not in built


def test_the_words_of_an_error_are_clipped() -> None:
    status = status_pb2.Status(message="ä" * 10_000).SerializeToString()
    parsed = parse_discovery_request(length_delimited(6, status), max_names=MAX_NAMES)
    assert parsed.request.error is not None
    assert len(parsed.request.error) == MAX_ERROR_CHARACTERS


@given(st.integers(min_value=0, max_value=2**63))
def test_numbers_are_encoded_as_the_official_library_encodes_them(value: int) -> None:
    if value < 2**31:
        expected = status_pb2.Status(code=value).SerializeToString()[1:] or b"\x00"
        assert write_varint(value) == expected
    encoded = write_varint(value)
    assert len(encoded) == max(1, -(-value.bit_length() // 7))
    assert read_varint(b"\xff" + encoded + b"\x01", 1, 1 + len(encoded)) == (
        value,
        1 + len(encoded),
    )
    with pytest.raises(ValueError, match="cut off"):
        read_varint(encoded, 0, len(encoded) - 1)


def test_a_number_without_an_end_is_read_for_ten_bytes_at_most() -> None:
    with pytest.raises(ValueError, match="too long"):
        read_varint(b"\xff" * 11, 0, 11)


_EXTENSIONS = length_delimited(9, b"an extension" * 8) * 60
_NODE_FIELDS = st.sampled_from(
    [
        length_delimited(1, b"an id"),
        length_delimited(1, b""),
        length_delimited(2, b"a cluster"),
        length_delimited(3, b""),
        length_delimited(4, b"a locality"),
        length_delimited(6, b"an agent"),
        length_delimited(9, b"an extension"),
        length_delimited(3, length_delimited(1, length_delimited(1, nodes.VALIDATOR_KEY.encode()))),
        _EXTENSIONS,
        b"\x53\x54",  # a group
        b"\x0a\x7f",  # ends too late
    ]
)


@given(st.lists(_NODE_FIELDS, max_size=8))
@example([length_delimited(1, b"an id"), _EXTENSIONS, length_delimited(1, b"")])
def test_a_node_whose_list_of_extensions_is_known_says_the_same(parts: list[bytes]) -> None:
    nodes._known_tails.clear()
    node = b"".join(parts)
    try:
        expected = request_pb2.Node.FromString(node)
    except DecodeError:
        with pytest.raises(MalformedRequestError):
            nodes.node_info(node, range(len(node)))
        return
    for _ in range(2):  # the second time, the list is known
        around = b"before" + node + b"after"
        info = nodes.node_info(around, range(6, 6 + len(node)))
        said = (info.id, info.cluster, info.user_agent) if info is not None else ("", "", "")
        assert said == (
            expected.id.decode(),
            expected.cluster.decode(),
            expected.user_agent_name.decode(),
        )


def test_a_list_of_extensions_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    build = protobuf_fields.message

    def counted(kind: Any, data: bytes, what: str) -> Any:
        read.append(len(data))
        return build(kind, data, what)

    monkeypatch.setattr("sds.serving.client_node.message", counted)
    nodes._known_tails.clear()
    for number in range(5):
        node = length_delimited(1, b"envoy %d" % number) + _EXTENSIONS
        info = nodes.node_info(node, range(len(node)))
        assert info is not None
        assert info.id == f"envoy {number}"
    assert sum(size > len(_EXTENSIONS) for size in read) == 1


def test_lists_of_extensions_that_clients_make_up_take_little_memory() -> None:
    for number in range(50):
        node = length_delimited(1, b"me") + length_delimited(9, b"%d" % number * 70_000)
        nodes.node_info(node, range(len(node)))
    assert len(nodes._known_tails) <= nodes._TAILS
    assert sum(map(len, nodes._known_tails)) <= nodes._TAILS * nodes._TAIL_BYTES
