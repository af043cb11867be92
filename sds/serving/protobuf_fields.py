"""Protobuf's wire format: the fields of a message, one after the other.

Owns the reading of a field's beginning, and messages of the trimmed schema
(``proto/sds/serving/v1/request.proto``). Invariant: whatever the bytes, a reader here returns, or
raises :class:`MalformedRequestError` or :class:`LimitError`; it looks at no more than a field's tag
and length. Groups (deprecated) are refused.

Source: "Protocol Buffers: Encoding".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from google.protobuf.message import DecodeError

from sds.errors import LimitError, MalformedRequestError
from sds.varint import read_varint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

BYTES: Final = 2
"""The wire type of texts, bytes and messages."""
_VARINT, _FIXED64, _FIXED32 = 0, 1, 5
_MAX_FIELD_NUMBER: Final = (1 << 29) - 1

_M = TypeVar("_M", bound="Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a request: its name in errors, and the most bytes that it may have."""

    name: str
    most: int


def message(kind: type[_M], data: bytes, what: str) -> _M:
    """Parse a message.

    Raises:
        MalformedRequestError: the bytes are not such a message; ``what`` names it.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedRequestError(f"{what} cannot be parsed: {error}") from None


def next_field(data: bytes, at: int, fields: Mapping[int, Field]) -> tuple[Field | None, int, int]:
    """Find the field that begins at ``at``; read its length, not its content.

    Returns:
        The field, if it is one of ``fields`` and has bytes; where its value begins, and ends.

    Raises:
        LimitError: it has more bytes than it may.
        MalformedRequestError: there is no field, or it does not end within ``data``.
    """
    end = len(data)
    try:
        tag, at = read_varint(data, at, end)
        number, kind = tag >> 3, tag & 7
        if number == 0 or number > _MAX_FIELD_NUMBER:
            raise MalformedRequestError(f"a field has number {number} at byte {at}")
        field, value = None, at
        if kind == BYTES:
            length, value = read_varint(data, at, end)
            field = fields.get(number)
            at = value + length
            if field is not None and field.most < length <= end - value:
                refuse_length(field, length)
        elif kind == _VARINT:
            _, at = read_varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise MalformedRequestError(f"field {number} has wire type {kind}")
    except ValueError:
        raise MalformedRequestError(
            f"a number that starts at byte {at} does not end or is too large"
        ) from None
    if at > end:
        raise MalformedRequestError(f"the message ends within field {number}")
    return field, value, at


def refuse_length(field: Field, length: int) -> NoReturn:
    """Refuse a field with ``length`` bytes.

    Raises:
        LimitError: always.
    """
    raise LimitError(
        f"{field.name} has a value of {length} bytes",
        advice=f"at most {field.most} bytes are accepted",
    )
