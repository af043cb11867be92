"""The node of a first request: who a client claims to be.

Envoy 1.40 sends 61 KB of node with the first request of each stream: nearly all of it lists its
extensions, and is the same for every Envoy of one build. Serving needs some dozens of bytes before
that. Owns what is read of a node, and the lists of extensions that clients sent last, which need
not be read again. Invariants: what is read of a node is the same whether its list is known or not;
at most :data:`_TAILS` lists of at most :data:`_TAIL_BYTES` are kept, whatever clients send.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from google.protobuf import struct_pb2

from sds._proto.sds.serving.v1 import request_pb2
from sds.errors import LimitError, MalformedRequestError
from sds.serving.protobuf_fields import Field, message, next_field, refuse_length

VALIDATOR_KEY: Final = "attested-sds.validator"
"""Node metadata: ``spiffe`` asks for the SPIFFE validator where a plain CA would be served."""
MAX_NODE_BYTES: Final = 1024 * 1024
MAX_METADATA_FIELDS: Final = 1_000
NODE: Final = Field(name="node", most=MAX_NODE_BYTES)
_MAX_VALUE_BYTES: Final = 1024
_VALIDATOR_KEY_BYTES: Final = VALIDATOR_KEY.encode()
_SHOWN_BYTES: Final = 256
_EXTENSION: Final = 9 << 3 | 2
"""The tag of ``Node.extensions``. Envoy writes fields in order, so what is read comes before it."""
_HEAD_FIELDS: Final = 16
"""The most fields before the first extension of a node whose list is remembered."""
_TAIL_BYTES: Final = 128 * 1024
_LEAST_TAIL_BYTES: Final = 4 * 1024
_TAILS: Final = 4
_PROBE: Final = request_pb2.Node(id=b"?", cluster=b"?", metadata=b"?", user_agent_name=b"?")
_PROBE_BYTES: Final = _PROBE.SerializeToString()
_known_tails: Final[deque[bytes]] = deque(maxlen=_TAILS)
"""What came last after the heads of nodes, and has nothing in it that is read."""


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


def node_info(data: bytes, where: range) -> NodeInfo | None:
    """Return what is kept of an ``envoy.config.core.v3.Node``: clipped texts, and one option.

    Args:
        data: has the node.
        where: its bytes in ``data``.

    Raises:
        LimitError: it is too long.
        MalformedRequestError: it is not such a message.
    """
    if not where:
        return None
    if len(where) > MAX_NODE_BYTES:
        refuse_length(NODE, len(where))
    stop = where.stop
    if len(where) >= _LEAST_TAIL_BYTES:
        tail = _first_extension(data, where)
        if tail is not None and _says_nothing(data, tail, stop):
            stop = tail
    node = message(request_pb2.Node, data[where.start : stop], "node")
    return NodeInfo(
        _clipped(node.id),
        _clipped(node.cluster),
        _clipped(node.user_agent_name),
        _wants_validator(node.metadata),
    )


def _first_extension(data: bytes, where: range) -> int | None:
    """Return where the first extension begins; None if that is not soon, or no list follows."""
    at = where.start
    try:
        for _ in range(_HEAD_FIELDS):
            if where.stop - at < _LEAST_TAIL_BYTES:
                return None
            if data[at] == _EXTENSION:
                return at if where.stop - at <= _TAIL_BYTES else None
            _, _, at = next_field(data, at, {})
    except MalformedRequestError:
        pass  # who parses all of it says what is wrong
    return None


def _says_nothing(data: bytes, at: int, stop: int) -> bool:
    """Say whether the fields from ``at`` on change nothing of what is read of a node.

    A message is the same as its pieces one after the other, so they are tried after a node in which
    everything is set ("Protocol Buffers: Encoding", "Last One Wins").

    Raises:
        MalformedRequestError: they are not fields.
    """
    for known in _known_tails:
        if len(known) == stop - at and data.startswith(known, at):  # without a copy
            return True
    tail = data[at:stop]
    tried = message(request_pb2.Node, _PROBE_BYTES + tail, "node")
    tried.DiscardUnknownFields()
    if tried != _PROBE:
        return False
    _known_tails.append(tail)
    return True


def _wants_validator(encoded: bytes) -> bool:
    """Say whether the Struct maps :data:`VALIDATOR_KEY` to the string ``spiffe``."""
    if _VALIDATOR_KEY_BYTES not in encoded:
        return False
    _check_metadata(encoded)
    value = b""
    for field in message(request_pb2.Metadata, encoded, "node.metadata").fields:
        if _VALIDATOR_KEY_BYTES in field:
            entry = message(request_pb2.Entry, field, "node.metadata")
            if entry.key == _VALIDATOR_KEY_BYTES:
                value = entry.value  # if a key repeats, the last one counts
    found = message(struct_pb2.Value, value[:_MAX_VALUE_BYTES], "node.metadata")
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
            _, _, at = next_field(encoded, at, {})
    except MalformedRequestError as error:
        raise MalformedRequestError(f"node.metadata cannot be parsed: {error}") from None
    if at < len(encoded):
        raise LimitError(
            f"node.metadata has more than {MAX_METADATA_FIELDS} fields",
            advice="leave out fields that nobody reads",
        )


def _clipped(value: bytes) -> str:
    return value[:_SHOWN_BYTES].decode(errors="replace")
