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
from typing import TYPE_CHECKING, Any, Final, TypeVar

from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from sds._proto.sds.serving.v1 import request_pb2
from sds.errors import LimitError, MalformedRequestError
from sds.serving.slices import SLICE, Slices, at_once
from sds.serving.subscription import DeltaRequest, SotwRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from google.protobuf.message import Message

MAX_NAME_BYTES: Final = 2048 + len("outbound:")
"""The longest name; a SPIFFE ID has at most 2048 bytes (SPIFFE-ID, section 2.3)."""
VALIDATOR_KEY: Final = "attested-sds.validator"
"""Node metadata: ``spiffe`` asks for the SPIFFE validator where a plain CA would be served."""
MAX_VERSION_BYTES: Final = 1024
MAX_NONCE_BYTES: Final = 1024
MAX_ERROR_CHARACTERS: Final = 1024
MAX_NODE_BYTES: Final = 1024 * 1024
MAX_METADATA_FIELDS: Final = 1_000
_MAX_STATUS_BYTES: Final = 64 * 1024
_MAX_VALUE_BYTES: Final = 1024
_VALIDATOR_KEY_BYTES: Final = VALIDATOR_KEY.encode()
_SHOWN_BYTES: Final = 256
_SMALL_BYTES: Final = 2 * 1024
"""The longest request that is parsed at once; it has at most 1,024 fields."""
_PIECE_BYTES: Final = 64 * 1024
"""How much of a longer request is parsed in one slice, apart from the piece's last field."""
_MOST_OTHER_FIELDS: Final = 256

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CONTINUES: Final = 0x80
_MAX_VARINT_BYTES: Final = 10
_MAX_FIELD_NUMBER: Final = (1 << 29) - 1

_M = TypeVar("_M", bound="Message")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Who a client claims to be: shown to people, and never used to decide its identity.

    Attributes:
        id: ``node.id``.
        cluster: ``node.cluster``.
        user_agent: ``node.user_agent_name``.
        wants_spiffe_validator: ``node.metadata`` asks for the stronger validation context
            (:data:`VALIDATOR_KEY` is ``spiffe``).
    """

    id: str = ""
    cluster: str = ""
    user_agent: str = ""
    wants_spiffe_validator: bool = False


@dataclass(frozen=True, slots=True)
class ParsedSotw:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """One field of a request: its name in errors, and the most bytes that it may have."""

    name: str
    most: int


_NODE: Final = _Field(name="node", most=MAX_NODE_BYTES)
_TYPE_URL: Final = _Field(name="type_url", most=MAX_NAME_BYTES)
_NONCE: Final = _Field(name="response_nonce", most=MAX_NONCE_BYTES)
_ERROR: Final = _Field(name="error_detail", most=_MAX_STATUS_BYTES)
_NAMES: Final = _Field(name="resource_names", most=MAX_NAME_BYTES)
_SUBSCRIBE: Final = _Field(name="resource_names_subscribe", most=MAX_NAME_BYTES)
_UNSUBSCRIBE: Final = _Field(name="resource_names_unsubscribe", most=MAX_NAME_BYTES)
_INITIAL: Final = _Field(name="initial_resource_versions", most=MAX_NAME_BYTES)
_ENTRIES: Final = _Field(
    name="initial_resource_versions", most=MAX_NAME_BYTES + MAX_VERSION_BYTES + 16
)
_VERSION: Final = _Field(name="initial_resource_versions", most=MAX_VERSION_BYTES)
_SOTW_FIELDS: Final = {2: _NODE, 3: _NAMES, 4: _TYPE_URL, 5: _NONCE, 6: _ERROR}
_DELTA_FIELDS: Final = {
    1: _NODE,
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
    return at_once(discovery_request(data, max_names=max_names))


def discovery_request(data: bytes, *, max_names: int) -> Slices[ParsedSotw]:
    """Do the work of :func:`parse_discovery_request` in slices."""
    found, node = yield from _parse(request_pb2.Request, data, _SOTW_FIELDS, max_names)
    if found.HasField("resource_locators"):
        _refuse_locators()
    names = yield from _texts(found.resource_names, _NAMES, max_names)
    error = _words(found.error_detail) if found.HasField("error_detail") else None
    return ParsedSotw(
        SotwRequest(names, _text(found.response_nonce, _NONCE), error),
        _text(found.type_url, _TYPE_URL),
        _node(node),
    )


def parse_delta_request(data: bytes, *, max_names: int) -> ParsedDelta:
    """Read a ``envoy.service.discovery.v3.DeltaDiscoveryRequest``.

    Raises:
        MalformedRequestError: the bytes are not such a message.
        LimitError: more names than ``max_names`` in one list, or a text that is too long.
    """
    return at_once(delta_discovery_request(data, max_names=max_names))


def delta_discovery_request(data: bytes, *, max_names: int) -> Slices[ParsedDelta]:
    """Do the work of :func:`parse_delta_request` in slices."""
    found, node = yield from _parse(request_pb2.DeltaRequest, data, _DELTA_FIELDS, max_names)
    if found.HasField("resource_locators_subscribe") or found.HasField(
        "resource_locators_unsubscribe"
    ):
        _refuse_locators()
    error = _words(found.error_detail) if found.HasField("error_detail") else None
    request = DeltaRequest(
        (yield from _texts(found.resource_names_subscribe, _SUBSCRIBE, max_names)),
        (yield from _texts(found.resource_names_unsubscribe, _UNSUBSCRIBE, max_names)),
        dict((yield from _each(found.initial_resource_versions, _version, max_names))),
        _text(found.response_nonce, _NONCE),
        error,
    )
    return ParsedDelta(request, _text(found.type_url, _TYPE_URL), _node(node))


def varint(value: int) -> bytes:
    """Encode an unsigned number as a base-128 varint."""
    out = bytearray()
    while value >= _CONTINUES:
        out.append(value & 0x7F | _CONTINUES)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_delimited(number: int, payload: bytes) -> bytes:
    """Encode field ``number`` of wire type 2 (string, bytes, message)."""
    return varint(number << 3 | _BYTES) + varint(len(payload)) + payload


# --- messages and texts -------------------------------------------------------------------------


def _parse(
    kind: type[_M], data: bytes, fields: Mapping[int, _Field], max_names: int
) -> Slices[tuple[Any, bytes]]:
    """Return the message, and the bytes of its node."""
    if len(data) <= _SMALL_BYTES:
        found: Any = _message(kind, data, "the request")
        if not len(UnknownFieldSet(found)):  # real clients send none; groups are among them
            return found, found.node
    most = 4 * max_names + _MOST_OTHER_FIELDS
    return (yield from _parse_pieces(kind, data, fields, most))


def _message(kind: type[_M], data: bytes, what: str) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedRequestError(f"{what} cannot be parsed: {error}") from None


def _texts(values: Any, field: _Field, max_names: int) -> Slices[tuple[str, ...]]:
    if len(values) <= SLICE:
        _admit(len(values), max_names)
        return tuple([_text(value, field) for value in values])
    return tuple((yield from _each(values, lambda value: _text(value, field), max_names)))


def _each(values: Any, read: Callable[[bytes], _T], max_names: int) -> Slices[list[_T]]:
    _admit(len(values), max_names)  # before one of them becomes an object
    if len(values) <= SLICE:
        return [read(value) for value in values]
    found: list[_T] = []
    for at in range(0, len(values), SLICE):
        found += [read(value) for value in values[at : at + SLICE]]
        yield SLICE
    return found


def _text(value: bytes, field: _Field) -> str:
    if len(value) > field.most:
        _refuse_length(field, len(value))
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequestError(f"{field.name} is not UTF-8: {error.reason}") from None


def _version(encoded: bytes) -> tuple[str, str]:
    entry = _message(request_pb2.Entry, encoded, "initial_resource_versions")
    return _text(entry.key, _INITIAL), _text(entry.value, _VERSION)


def _words(encoded: bytes) -> str:
    """Return the message of a ``google.rpc.Status``, clipped; it is only shown and logged."""
    words = _message(request_pb2.Status, encoded, "error_detail").message
    return words[: 4 * MAX_ERROR_CHARACTERS].decode(errors="replace")[:MAX_ERROR_CHARACTERS]


def _node(encoded: bytes) -> NodeInfo | None:
    """Return what is kept of an ``envoy.config.core.v3.Node``: clipped texts, and one option."""
    if not encoded:
        return None
    if len(encoded) > MAX_NODE_BYTES:
        _refuse_length(_NODE, len(encoded))
    node = _message(request_pb2.Node, encoded, "node")
    return NodeInfo(
        _clipped(node.id),
        _clipped(node.cluster),
        _clipped(node.user_agent_name),
        _wants_validator(node.metadata),
    )


def _wants_validator(encoded: bytes) -> bool:
    """Say whether the Struct maps :data:`VALIDATOR_KEY` to the string ``spiffe``."""
    if _VALIDATOR_KEY_BYTES not in encoded:
        return False
    _check_metadata(encoded)
    value = b""
    for field in _message(request_pb2.Metadata, encoded, "node.metadata").fields:
        if _VALIDATOR_KEY_BYTES in field:
            entry = _message(request_pb2.Entry, field, "node.metadata")
            if entry.key == _VALIDATOR_KEY_BYTES:
                value = entry.value  # if a key repeats, the last one counts
    found = _message(struct_pb2.Value, value[:_MAX_VALUE_BYTES], "node.metadata")
    return bool(found.string_value == "spiffe")


def _check_metadata(encoded: bytes) -> None:
    """Count the fields before any of them becomes an object.

    Raises:
        LimitError: there are too many.
        MalformedRequestError: it is not a message, or has a group.
    """
    at = 0
    try:
        for _ in range(MAX_METADATA_FIELDS):
            if at == len(encoded):
                return
            _, _, at = _next_field(encoded, at, {})
    except MalformedRequestError as error:
        raise MalformedRequestError(f"node.metadata cannot be parsed: {error}") from None
    if at < len(encoded):
        raise LimitError(
            f"node.metadata has more than {MAX_METADATA_FIELDS} fields",
            advice="leave out fields that nobody reads",
        )


def _clipped(value: bytes) -> str:
    return value[:_SHOWN_BYTES].decode(errors="replace")


# --- limits -------------------------------------------------------------------------------------


def _admit(count: int, max_names: int) -> None:
    if count > max_names:
        raise LimitError(
            f"the request names more than {max_names} resources",
            advice="ask for fewer on one stream, or raise limits.names_per_stream",
        )


def _refuse_length(field: _Field, length: int) -> None:
    raise LimitError(
        f"{field.name} has a value of {length} bytes",
        advice=f"at most {field.most} bytes are accepted",
    )


def _refuse_locators() -> None:
    raise MalformedRequestError(
        "resource locators (xdstp) are not served", advice="ask by resource_names"
    )


def _parse_pieces(
    kind: type[_M], data: bytes, fields: Mapping[int, _Field], most: int
) -> Slices[tuple[_M, bytes]]:
    """Parse a message in pieces of whole fields, after a look at the length of each.

    One message is the same as its pieces one after the other ("Protocol Buffers: Encoding", "Last
    One Wins"). The node is nearly all of a large request: it is cut out, and not given to the
    runtime, which would copy it twice.

    Returns:
        The message without its node, and the bytes of the node: of the last one.

    Raises:
        LimitError: more than ``most`` fields, or one that is too long.
        MalformedRequestError: it is not a message ("Protocol Buffers: Encoding"), or has a group.
    """
    found = kind()
    node = range(0)
    begins = at = counted = 0
    end = len(data)
    while at < end:
        most -= 1
        if most < 0:
            raise LimitError("a message has too many fields", advice="ask for fewer resources")
        begun = at
        field, value, at = _next_field(data, at, fields)
        counted += 1
        if field is _NODE:
            node = range(value, at)
            if begins < begun:
                _add(found, data[begins:begun])
            begins = at
        if counted == SLICE or at - begins >= _PIECE_BYTES:
            _add(found, data[begins:at])
            yield counted
            begins, counted = at, 0
    _add(found, data[begins:])
    return found, data[node.start : node.stop]


def _add(found: Message, piece: bytes) -> None:
    try:
        found.MergeFromString(piece)
    except DecodeError as error:
        raise MalformedRequestError(f"the request cannot be parsed: {error}") from None


def _next_field(
    data: bytes, at: int, fields: Mapping[int, _Field]
) -> tuple[_Field | None, int, int]:
    """Find the field that begins at ``at``; read its length, not its content.

    Returns:
        The field, if it is one of ``fields`` and has bytes; where its value begins, and ends.
    """
    end = len(data)
    tag, at = _varint(data, at)
    number, kind = tag >> 3, tag & 7
    if number == 0 or number > _MAX_FIELD_NUMBER:
        raise MalformedRequestError(f"a field has number {number} at byte {at}")
    field, value = None, at
    if kind == _BYTES:
        length, value = _varint(data, at)
        field = fields.get(number)
        at = value + length
        if field is not None and field.most < length <= end - value:
            _refuse_length(field, length)
    elif kind == _VARINT:
        _, at = _varint(data, at)
    elif kind in (_FIXED64, _FIXED32):
        at += 8 if kind == _FIXED64 else 4
    else:
        raise MalformedRequestError(f"field {number} has wire type {kind}")
    if at > end:
        raise MalformedRequestError(f"the message ends within field {number}")
    return field, value, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at ``at``, and where it ends."""
    if at < len(data) and (value := data[at]) < _CONTINUES:
        return value, at + 1
    value = 0
    for index in range(at, min(len(data), at + _MAX_VARINT_BYTES)):
        byte = data[index]
        value |= (byte & 0x7F) << 7 * (index - at)
        if byte < _CONTINUES:
            return value, index + 1
    raise MalformedRequestError(f"a number that starts at byte {at} does not end or is too large")
