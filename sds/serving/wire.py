"""The few protobuf fields that serving reads from requests and writes into responses, by hand.

Owns the reading of DiscoveryRequest and DeltaDiscoveryRequest. Envoy 1.40 puts 61 KB of node
extensions into the first request of each stream; serving needs some dozens of bytes of it, so the
fields that it does not need are stepped over, not parsed and never kept.

Invariants: whatever the bytes, a parser returns a request or raises :class:`MalformedRequestError`
or :class:`LimitError`; it allocates no more than the names and texts that its limits admit, and
never more than one small object for each field that it keeps. The encoding is that of
"Protocol Buffers: Encoding": unknown fields are stepped over, of a singular field the last one
counts, groups (deprecated, used by none of these messages) are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError

from sds.errors import LimitError, MalformedRequestError
from sds.serving.subscription import DeltaRequest, SotwRequest

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_NAME_BYTES: Final = 2048 + len("outbound:")
"""A SPIFFE ID has at most 2048 bytes (SPIFFE-ID, section 2.3)."""
VALIDATOR_KEY: Final = "attested-sds.validator"
"""Node metadata: ``spiffe`` asks for the SPIFFE validator where a plain CA would be served."""
_VALIDATOR_KEY_BYTES: Final = VALIDATOR_KEY.encode()
MAX_VERSION_BYTES: Final = 1024
MAX_NONCE_BYTES: Final = 1024
MAX_ERROR_CHARACTERS: Final = 1024
_MAX_VARINT_BYTES: Final = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CONTINUES: Final = 0x80
_NESTED_FIELDS: Final = 256
"""More than any of the nested messages has before what is not read."""
_MAX_FIELD_NUMBER: Final = (1 << 29) - 1

# Numbers of fields: envoy/service/discovery/v3/discovery.proto, envoy/config/core/v3/base.proto,
# google/rpc/status.proto; an entry of a map is a message of key and value.
_SOTW_NODE, _SOTW_NAMES, _SOTW_TYPE_URL, _SOTW_NONCE, _SOTW_ERROR, _SOTW_LOCATORS = range(2, 8)
_DELTA_NODE, _DELTA_TYPE_URL, _DELTA_SUBSCRIBE, _DELTA_UNSUBSCRIBE = range(1, 5)
_DELTA_INITIAL, _DELTA_NONCE, _DELTA_ERROR = range(5, 8)
_DELTA_LOCATORS: Final = (8, 9)
_NODE_ID, _NODE_CLUSTER, _NODE_METADATA, _NODE_USER_AGENT, _NODE_EXTENSIONS = 1, 2, 3, 6, 9
_STATUS_MESSAGE: Final = 2
_ENTRY_KEY, _ENTRY_VALUE = 1, 2


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """Who a client says that it is: for people only, decides nothing about identity.

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
    """A DiscoveryRequest: ``node`` is None where the request carries none."""

    request: SotwRequest
    type_url: str
    node: NodeInfo | None


@dataclass(frozen=True, slots=True)
class ParsedDelta:
    """A DeltaDiscoveryRequest: ``node`` is None where the request carries none."""

    request: DeltaRequest
    type_url: str
    node: NodeInfo | None


def parse_discovery_request(data: bytes, *, max_names: int) -> ParsedSotw:
    """Read a ``envoy.service.discovery.v3.DiscoveryRequest``.

    Raises:
        MalformedRequestError: the bytes are not such a message.
        LimitError: more names than ``max_names``, or a text that is too long.
    """
    names: list[str] = []
    type_url = nonce = ""
    error: str | None = None
    node: NodeInfo | None = None
    for number, start, stop in _fields(data, 0, len(data), 4 * max_names + _NESTED_FIELDS):
        if number == _SOTW_NAMES:
            _admit(len(names), max_names)
            names.append(_text(data, start, stop, MAX_NAME_BYTES, "resource_names"))
        elif number == _SOTW_TYPE_URL:
            type_url = _text(data, start, stop, MAX_NAME_BYTES, "type_url")
        elif number == _SOTW_NONCE:
            nonce = _text(data, start, stop, MAX_NONCE_BYTES, "response_nonce")
        elif number == _SOTW_NODE:
            node = _node(data, start, stop)
        elif number == _SOTW_ERROR:
            error = _status_message(data, start, stop)
        elif number == _SOTW_LOCATORS:
            _refuse_locators()
    return ParsedSotw(SotwRequest(tuple(names), nonce, error), type_url, node)


def parse_delta_request(data: bytes, *, max_names: int) -> ParsedDelta:
    """Read a ``envoy.service.discovery.v3.DeltaDiscoveryRequest``.

    Raises:
        MalformedRequestError: the bytes are not such a message.
        LimitError: more names than ``max_names`` in one list, or a text that is too long.
    """
    subscribe: list[str] = []
    unsubscribe: list[str] = []
    initial: dict[str, str] = {}
    type_url = nonce = ""
    error: str | None = None
    node: NodeInfo | None = None
    for number, start, stop in _fields(data, 0, len(data), 4 * max_names + _NESTED_FIELDS):
        if number == _DELTA_SUBSCRIBE:
            _admit(len(subscribe), max_names)
            subscribe.append(_text(data, start, stop, MAX_NAME_BYTES, "resource_names_subscribe"))
        elif number == _DELTA_UNSUBSCRIBE:
            _admit(len(unsubscribe), max_names)
            unsubscribe.append(
                _text(data, start, stop, MAX_NAME_BYTES, "resource_names_unsubscribe")
            )
        elif number == _DELTA_INITIAL:
            _admit(len(initial), max_names)
            name, version = _map_entry(data, start, stop)
            initial[name] = version
        elif number == _DELTA_TYPE_URL:
            type_url = _text(data, start, stop, MAX_NAME_BYTES, "type_url")
        elif number == _DELTA_NONCE:
            nonce = _text(data, start, stop, MAX_NONCE_BYTES, "response_nonce")
        elif number == _DELTA_NODE:
            node = _node(data, start, stop)
        elif number == _DELTA_ERROR:
            error = _status_message(data, start, stop)
        elif number in _DELTA_LOCATORS:
            _refuse_locators()
    request = DeltaRequest(tuple(subscribe), tuple(unsubscribe), initial, nonce, error)
    return ParsedDelta(request, type_url, node)


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


# --- inside -------------------------------------------------------------------------------------


def _fields(data: bytes, at: int, end: int, most: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and stop of each field's content in ``data[at:end]``, in order.

    Only wire type 2 carries anything that is read here; the content of the others is stepped
    over and not yielded.

    Raises:
        LimitError: there are more than ``most`` fields: time is bounded, too.
    """
    while at < end:
        most -= 1
        if most < 0:
            raise LimitError("a message has too many fields", advice="ask for fewer resources")
        tag = data[at]
        at += 1
        if tag >= _CONTINUES:
            tag, at = _varint(data, at - 1, end)
        number = tag >> 3
        kind = tag & 7
        if number == 0 or number > _MAX_FIELD_NUMBER:
            raise MalformedRequestError(f"a field has number {number} at byte {at}")
        if kind == _BYTES:
            if at >= end:
                raise MalformedRequestError(f"the message ends within field {number}")
            length = data[at]
            at += 1
            if length >= _CONTINUES:
                length, at = _varint(data, at - 1, end)
            stop = at + length
            if stop > end:
                raise MalformedRequestError(
                    f"field {number} says it has {length} bytes, {end - at} are left"
                )
            yield number, at, stop
            at = stop
        else:
            at = _step_over(data, at, end, kind, number)


def _step_over(data: bytes, at: int, end: int, kind: int, number: int) -> int:
    """Where the content of a field ends that is not read."""
    if kind == _VARINT:
        return _varint(data, at, end)[1]
    if kind not in (_FIXED64, _FIXED32):
        raise MalformedRequestError(f"field {number} has wire type {kind}")
    at += 8 if kind == _FIXED64 else 4
    if at > end:
        raise MalformedRequestError(f"the message ends within field {number}")
    return at


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The varint at ``at`` and where it ends."""
    value = 0
    for index in range(at, min(end, at + _MAX_VARINT_BYTES)):
        byte = data[index]
        value |= (byte & 0x7F) << 7 * (index - at)
        if byte < _CONTINUES:
            if value >= 1 << 64:
                break
            return value, index + 1
    raise MalformedRequestError(f"a number that starts at byte {at} does not end or is too large")


def _text(data: bytes, start: int, stop: int, longest: int, what: str) -> str:
    if stop - start > longest:
        raise LimitError(
            f"{what} has a value of {stop - start} bytes", advice=f"at most {longest} are served"
        )
    try:
        return data[start:stop].decode()
    except UnicodeDecodeError as error:
        raise MalformedRequestError(f"{what} is not UTF-8: {error.reason}") from None


def _admit(count: int, max_names: int) -> None:
    if count >= max_names:
        raise LimitError(
            f"the request names more than {max_names} resources",
            advice="ask for fewer on one stream, or raise limits.names_per_stream",
        )


def _refuse_locators() -> None:
    raise MalformedRequestError(
        "resource locators (xdstp) are not served", advice="ask by resource_names"
    )


def _map_entry(data: bytes, start: int, stop: int) -> tuple[str, str]:
    name = version = ""
    for number, at, end in _fields(data, start, stop, _NESTED_FIELDS):
        if number == _ENTRY_KEY:
            name = _text(data, at, end, MAX_NAME_BYTES, "initial_resource_versions")
        elif number == _ENTRY_VALUE:
            version = _text(data, at, end, MAX_VERSION_BYTES, "initial_resource_versions")
    return name, version


def _status_message(data: bytes, start: int, stop: int) -> str:
    """The message of a ``google.rpc.Status``, clipped: it is shown and logged, nothing else."""
    message = ""
    for number, at, end in _fields(data, start, stop, _NESTED_FIELDS):
        if number == _STATUS_MESSAGE:
            clipped = data[at : min(end, at + 4 * MAX_ERROR_CHARACTERS)]
            message = clipped.decode(errors="replace")[:MAX_ERROR_CHARACTERS]
    return message


def _node(data: bytes, start: int, stop: int) -> NodeInfo:
    """What is kept of a ``envoy.config.core.v3.Node``: its texts, clipped, and one wish.

    Reading ends at the first extension: every serializer writes fields in the order of their
    numbers, so nothing that is kept comes after it, and a thousand extensions cost nothing.
    """
    identifier = cluster = user_agent = ""
    wants_validator = False
    for number, at, end in _fields(data, start, stop, _NESTED_FIELDS):
        if number == _NODE_ID:
            identifier = _clipped(data, at, end)
        elif number == _NODE_CLUSTER:
            cluster = _clipped(data, at, end)
        elif number == _NODE_METADATA:
            wants_validator = _wants_validator(data, at, end)
        elif number == _NODE_USER_AGENT:
            user_agent = _clipped(data, at, end)
        elif number == _NODE_EXTENSIONS:
            break
    return NodeInfo(identifier, cluster, user_agent, wants_validator)


def _wants_validator(data: bytes, start: int, stop: int) -> bool:
    """Whether the Struct maps :data:`VALIDATOR_KEY` to the string ``spiffe``."""
    if data.find(_VALIDATOR_KEY_BYTES, start, stop) < 0:
        return False
    try:
        metadata = struct_pb2.Struct.FromString(data[start:stop])
    except DecodeError:
        raise MalformedRequestError("node.metadata is not a google.protobuf.Struct") from None
    value = metadata.fields.get(VALIDATOR_KEY)
    return value is not None and bool(value.string_value == "spiffe")


def _clipped(data: bytes, start: int, stop: int) -> str:
    return data[start : min(stop, start + 256)].decode(errors="replace")
