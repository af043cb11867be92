"""Converts a protobuf message to plain values for ``--output json``.

Invariant: every field is present under its name in the .proto file, and numbers are numbers.
Protobuf's own JSON form writes 64-bit integers as text, because of JavaScript.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

if TYPE_CHECKING:
    from google.protobuf.message import Message

_WIDE = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


def plain(message: Message) -> dict[str, Any]:
    """Return the message's fields, nested messages as dictionaries."""
    fields: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _with_numbers(fields, message.DESCRIPTOR)
    return fields


def _with_numbers(fields: dict[str, Any], descriptor: Any) -> None:
    """Turn the text of 64-bit integers into numbers, in place."""
    for field in descriptor.fields:
        value = fields.get(field.name)
        if value is None:
            continue
        if field.cpp_type in _WIDE:
            fields[field.name] = (
                [int(one) for one in value] if isinstance(value, list) else int(value)
            )
        elif field.message_type is not None:
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, dict):
                    _with_numbers(one, field.message_type)
