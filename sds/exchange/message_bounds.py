"""Counts the parts of a message before anything is built from it.

Owns the bounds on the repeated fields of requests and answers. Protobuf makes an object of each
part of a message, and an empty part has two bytes on the wire: 4 MiB of them would become 150 MiB.
Invariant: only tags and lengths are read, and counting stops at the first field that is repeated
too often, or once the message has more than :data:`MOST_PARTS` in all, so the allowed numbers bound
the cost (Protocol Buffers, "Encoding").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.attestation.exchange_key.events import MAX_EVENTS
from sds.errors import RefusedError
from sds.exchange.challenge import MAX_COVERED, MAX_ITEMS
from sds.varint import read_varint

if TYPE_CHECKING:
    from collections.abc import Mapping

_UNLISTED: Final = 32
"""How often fields may appear that are not repeated or that this version does not know."""
_OTHERS: Final = -1
MOST_PARTS: Final = 120_000
"""The most fields of a message and of those inside it. The largest request has 1,000 items with 100
names each; items and names, each bounded by themselves, could be 1.6 million in 4 MiB."""
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The fields of one kind of message that can make many objects.

    Attributes:
        most: how often each repeated field may appear, by its number.
        inside: the shape of a field that is a message, by its number. One that is not repeated may
            appear once; parsers would join several, with the parts of all.
    """

    most: Mapping[int, int] = field(default_factory=dict)
    inside: Mapping[int, Shape] = field(default_factory=dict)

    def single(self, number: int) -> tuple[int, int]:
        """Return how a field that is not repeated is counted: its number, and the bound."""
        return (number, 1) if number in self.inside else (_OTHERS, _UNLISTED)


# Four times what is allowed, so that the exact bound refuses with a reason of its own.
_ITEM: Final = Shape(most={3: 400})
_PROOF: Final = Shape(most={2: 4 * MAX_EVENTS})
_EVIDENCE: Final = Shape(most={3: 64}, inside={4: _PROOF})
_CERTIFICATES: Final = Shape(most={2: 4 * MAX_ITEMS}, inside={2: _ITEM, 3: _EVIDENCE})
REQUEST: Final = Shape(inside={2: _CERTIFICATES})
"""``sds.ca.v1.ExchangeRequest``: items of a request, DNS names of an item, certificates."""
_CHAIN: Final = 64
_ROOTS: Final = 1024
RESPONSE: Final = Shape(
    inside={
        1: Shape(most={4: _CHAIN, 5: _ROOTS, 9: 4 * MAX_COVERED}, inside={3: _EVIDENCE}),
        2: Shape(most={1: 4 * MAX_ITEMS, 3: _CHAIN, 4: _ROOTS}),
    }
)
"""``sds.ca.v1.ExchangeResponse``: until its evidence is verified, an authority may be anybody."""


def check_shape(data: bytes, shape: Shape = REQUEST) -> None:
    """Count the fields of a message and of those inside it.

    Raises:
        RefusedError: ``request_malformed``: a field appears too often, there are too many, or this
            is not a message.
    """
    try:
        _check(data, 0, len(data), shape, MOST_PARTS)
    except ValueError as error:
        raise _malformed(f"the message is not of sds.ca.v1: {error}") from None


def _check(data: bytes, position: int, end: int, shape: Shape, left: int) -> int:
    """Count fields from a position to an end; return how many more there may be."""
    seen: dict[int, int] = {}
    repeated = shape.most
    while position < end:
        left -= 1
        if left < 0:
            raise _malformed(f"the message has more than {MOST_PARTS} fields in all")
        tag, position = read_varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        counted, most = number, repeated.get(number)
        if most is None:  # most fields are repeated ones
            counted, most = shape.single(number)
        seen[counted] = seen.get(counted, 0) + 1
        if seen[counted] > most:
            raise _malformed(f"the message has too many fields (field {number})")
        if kind == _LENGTH:
            length, position = read_varint(data, position, end)
            stop = position + length
            if stop > end:
                raise ValueError("it is cut off")
            inner = shape.inside.get(number)
            if inner is not None:
                left = _check(data, position, stop, inner, left)
            position = stop
        else:
            position = _past_number(data, position, end, kind)
    if position > end:
        raise ValueError("it is cut off")
    return left


def _past_number(data: bytes, position: int, end: int, kind: int) -> int:
    if kind == _VARINT:
        return read_varint(data, position, end)[1]
    if kind in (_FIXED32, _FIXED64):
        return position + (4 if kind == _FIXED32 else 8)
    raise _malformed("the message has groups, which proto3 does not know")


def _malformed(message: str) -> RefusedError:
    return RefusedError(message, reason="request_malformed")
