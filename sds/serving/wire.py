"""Reads discovery requests within bounds, and has the two encodings that responses need.

Owns the reading of DiscoveryRequest and DeltaDiscoveryRequest. The official protobuf runtime parses
them, with a trimmed schema (``proto/sds/serving/v1/request.proto``): Envoy 1.40 puts 61 KB of node
extensions into the first request of each stream, and serving needs some dozens of bytes of it.

Invariants: whatever the bytes, a parser returns a request or raises :class:`MalformedRequestError`
or :class:`LimitError`; it makes no more Python objects than the names and texts that its limits
admit; a request that is large or has unknown fields is parsed in slices
(:mod:`sds.serving.slices`), and each of its fields is counted and its length checked before the
runtime sees it, so that what the runtime allocates is bounded too. Groups (deprecated, used by none
of these messages) are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from sds._proto.sds.serving.v1 import request_pb2
from sds.errors import LimitError, MalformedRequestError
from sds.serving.client_node import NODE, node_info
from sds.serving.protobuf_fields import BYTES, Field, message, next_field, refuse_length
from sds.serving.slices import SLICE, Slices, at_once
from sds.serving.subscription import DeltaRequest, SotwRequest
from sds.varint import write_varint

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

    from sds.serving.client_node import NodeInfo

MAX_NAME_BYTES: Final = 2048 + len("outbound:")
"""The longest name; a SPIFFE ID has at most 2048 bytes (SPIFFE-ID, section 2.3)."""
MAX_VERSION_BYTES: Final = 1024
MAX_NONCE_BYTES: Final = 1024
MAX_ERROR_CHARACTERS: Final = 1024
_MAX_STATUS_BYTES: Final = 64 * 1024
_SMALL_BYTES: Final = 2 * 1024
"""The longest request that is parsed at once; it has at most 1,024 fields."""
_PIECE_BYTES: Final = 64 * 1024
"""How much of a longer request is parsed in one slice, apart from the piece's last field."""
_MOST_OTHER_FIELDS: Final = 256

_M = TypeVar("_M", bound="Message")
_T = TypeVar("_T")


class ParsedSotw(NamedTuple):
    """A DiscoveryRequest: ``node`` is None if the request carries none."""

    request: SotwRequest
    type_url: str
    node: NodeInfo | None


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """A DeltaDiscoveryRequest: ``node`` is None if the request carries none."""

    request: DeltaRequest
    type_url: str
    node: NodeInfo | None


_TYPE_URL: Final = Field(name="type_url", most=MAX_NAME_BYTES)
_NONCE: Final = Field(name="response_nonce", most=MAX_NONCE_BYTES)
_ERROR: Final = Field(name="error_detail", most=_MAX_STATUS_BYTES)
_NAMES: Final = Field(name="resource_names", most=MAX_NAME_BYTES)
_SUBSCRIBE: Final = Field(name="resource_names_subscribe", most=MAX_NAME_BYTES)
_UNSUBSCRIBE: Final = Field(name="resource_names_unsubscribe", most=MAX_NAME_BYTES)
_INITIAL: Final = Field(name="initial_resource_versions", most=MAX_NAME_BYTES)
_ENTRIES: Final = Field(
    name="initial_resource_versions", most=MAX_NAME_BYTES + MAX_VERSION_BYTES + 16
)
_VERSION: Final = Field(name="initial_resource_versions", most=MAX_VERSION_BYTES)
_SOTW_FIELDS: Final = {2: NODE, 3: _NAMES, 4: _TYPE_URL, 5: _NONCE, 6: _ERROR}
_DELTA_FIELDS: Final = {
    1: NODE,
    2: _TYPE_URL,
    3: _SUBSCRIBE,
    4: _UNSUBSCRIBE,
    5: _ENTRIES,
    6: _NONCE,
    7: _ERROR,
}


def parse_discovery_request(data: bytes, *, max_names: int) -> ParsedSotw:
    """Read a ``envoy.service.discovery.v3.DiscoveryRequest``.

    Raises:
        MalformedRequestError: the bytes are not such a message.
        LimitError: more names than ``max_names``, or a text that is too long.
    """
    small = small_discovery_request(data, max_names=max_names)
    return small or at_once(discovery_request(data, max_names=max_names))


def small_discovery_request(data: bytes, *, max_names: int) -> ParsedSotw | None:
    """Do the work of :func:`parse_discovery_request` if it takes one slice; None if it may not.

    Nearly every request is an ACK, which is small.
    """
    found = _small(request_pb2.Request, data)
    if found is None:
        return None
    names, node = found.resource_names, found.node
    if len(names) > SLICE:
        return None
    return _sotw(found, _few_texts(names, _NAMES, max_names), node, range(len(node)))


def discovery_request(data: bytes, *, max_names: int) -> Slices[ParsedSotw]:
    """Do the work of :func:`parse_discovery_request` in slices."""
    found: Any
    found, node = yield from _parse_pieces(request_pb2.Request, data, _SOTW_FIELDS, max_names)
    names = yield from _texts(found.resource_names, _NAMES, max_names)
    return _sotw(found, names, data, node)


def _sotw(found: Any, names: tuple[str, ...], source: bytes, node: range) -> ParsedSotw:
    if found.HasField("resource_locators"):
        _refuse_locators()
    error = _words(found.error_detail) if found.HasField("error_detail") else None
    return ParsedSotw(
        SotwRequest(names, _text(found.response_nonce, _NONCE), error),
        _text(found.type_url, _TYPE_URL),
        node_info(source, node) if node else None,
    )


def parse_delta_request(data: bytes, *, max_names: int) -> ParsedDelta:
    """Read a ``envoy.service.discovery.v3.DeltaDiscoveryRequest``.

    Raises:
        MalformedRequestError: the bytes are not such a message.
        LimitError: more names than ``max_names`` in one list, or a text that is too long.
    """
    small = small_delta_request(data, max_names=max_names)
    return small or at_once(delta_discovery_request(data, max_names=max_names))


def small_delta_request(data: bytes, *, max_names: int) -> ParsedDelta | None:
    """Do the work of :func:`parse_delta_request` if it takes one slice; None if it may not."""
    found = _small(request_pb2.DeltaRequest, data)
    if found is None:
        return None
    subscribe, unsubscribe = found.resource_names_subscribe, found.resource_names_unsubscribe
    if found.initial_resource_versions or max(len(subscribe), len(unsubscribe)) > SLICE:
        return None
    subscribe = _few_texts(subscribe, _SUBSCRIBE, max_names)
    unsubscribe = _few_texts(unsubscribe, _UNSUBSCRIBE, max_names)
    node = found.node
    return _delta(found, (subscribe, unsubscribe, {}), node, range(len(node)))


def delta_discovery_request(data: bytes, *, max_names: int) -> Slices[ParsedDelta]:
    """Do the work of :func:`parse_delta_request` in slices."""
    found: Any
    found, node = yield from _parse_pieces(request_pb2.DeltaRequest, data, _DELTA_FIELDS, max_names)
    lists = (
        (yield from _texts(found.resource_names_subscribe, _SUBSCRIBE, max_names)),
        (yield from _texts(found.resource_names_unsubscribe, _UNSUBSCRIBE, max_names)),
        dict((yield from _each(found.initial_resource_versions, _version, max_names))),
    )
    return _delta(found, lists, data, node)


def _delta(
    found: Any,
    lists: tuple[tuple[str, ...], tuple[str, ...], dict[str, str]],
    source: bytes,
    node: range,
) -> ParsedDelta:
    if found.HasField("resource_locators_subscribe") or found.HasField(
        "resource_locators_unsubscribe"
    ):
        _refuse_locators()
    error = _words(found.error_detail) if found.HasField("error_detail") else None
    request = DeltaRequest(*lists, _text(found.response_nonce, _NONCE), error)
    return ParsedDelta(request, _text(found.type_url, _TYPE_URL), node_info(source, node))


def length_delimited(number: int, payload: bytes) -> bytes:
    """Encode field ``number`` of wire type 2 (string, bytes, message)."""
    return write_varint(number << 3 | BYTES) + write_varint(len(payload)) + payload


# --- messages and texts -------------------------------------------------------------------------


def _small(kind: type[Message], data: bytes) -> Any:
    """Return the message; None if it is large, or has fields that need a look before."""
    if len(data) > _SMALL_BYTES:
        return None
    found = message(kind, data, "the request")
    # Real clients send no unknown fields; groups are among them.
    return None if len(UnknownFieldSet(found)) else found


def _texts(values: Any, field: Field, max_names: int) -> Slices[tuple[str, ...]]:
    if len(values) <= SLICE:
        return _few_texts(values, field, max_names)
    return tuple((yield from _each(values, lambda value: _text(value, field), max_names)))


def _few_texts(values: Any, field: Field, max_names: int) -> tuple[str, ...]:
    _admit(len(values), max_names)
    return tuple([_text(value, field) for value in values[:]])  # a list ends without an error


def _each(values: Any, read: Callable[[bytes], _T], max_names: int) -> Slices[list[_T]]:
    _admit(len(values), max_names)  # before one of them becomes an object
    if len(values) <= SLICE:
        return [read(value) for value in values]
    found: list[_T] = []
    for at in range(0, len(values), SLICE):
        found += [read(value) for value in values[at : at + SLICE]]
        yield SLICE
    return found


def _text(value: bytes, field: Field) -> str:
    if len(value) > field.most:
        refuse_length(field, len(value))
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequestError(f"{field.name} is not UTF-8: {error.reason}") from None


def _version(encoded: bytes) -> tuple[str, str]:
    entry = message(request_pb2.Entry, encoded, "initial_resource_versions")
    return _text(entry.key, _INITIAL), _text(entry.value, _VERSION)


def _words(encoded: bytes) -> str:
    """Return the message of a ``google.rpc.Status``, clipped; it is only shown and logged."""
    words = message(request_pb2.Status, encoded, "error_detail").message
    return words[: 4 * MAX_ERROR_CHARACTERS].decode(errors="replace")[:MAX_ERROR_CHARACTERS]


# --- limits -------------------------------------------------------------------------------------


def _admit(count: int, max_names: int) -> None:
    if count > max_names:
        raise LimitError(
            f"the request names more than {max_names} resources",
            advice="ask for fewer on one stream, or raise limits.names_per_stream",
        )


def _refuse_locators() -> None:
    raise MalformedRequestError(
        "resource locators (xdstp) are not served", advice="ask by resource_names"
    )


def _parse_pieces(
    kind: type[_M], data: bytes, fields: Mapping[int, Field], max_names: int
) -> Slices[tuple[_M, range]]:
    """Parse a message in pieces of whole fields, after a look at the length of each.

    One message is the same as its pieces one after the other ("Protocol Buffers: Encoding", "Last
    One Wins"). The node is nearly all of a large request: it is left out, and not given to the
    runtime, which would copy it twice.

    Returns:
        The message without its node, and where the node is: the last one.

    Raises:
        LimitError: more fields than so many names need, or one that is too long.
        MalformedRequestError: it is not a message ("Protocol Buffers: Encoding"), or has a group.
    """
    most = 4 * max_names + _MOST_OTHER_FIELDS
    found = kind()
    node = range(0)
    begins = at = counted = 0
    end = len(data)
    while at < end:
        most -= 1
        if most < 0:
            raise LimitError("a message has too many fields", advice="ask for fewer resources")
        begun = at
        field, value, at = next_field(data, at, fields)
        counted += 1
        if field is NODE:
            node = range(value, at)
            if begins < begun:
                _add(found, data[begins:begun])
            begins = at
        if counted == SLICE or at - begins >= _PIECE_BYTES:
            _add(found, data[begins:at])
            yield counted
            begins, counted = at, 0
    _add(found, data[begins:])
    return found, node


def _add(found: Message, piece: bytes) -> None:
    try:
        found.MergeFromString(piece)
    except DecodeError as error:
        raise MalformedRequestError(f"the request cannot be parsed: {error}") from None
