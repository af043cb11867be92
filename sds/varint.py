"""Base-128 numbers of Protocol Buffers, read and written.

Owns their form for those who look at a message before its bytes become objects. Invariant: at most
ten bytes are read, whatever they are, and none at or after the given end.

Source: Protocol Buffers, "Encoding", "Base 128 Varints".
"""

from __future__ import annotations

from typing import Final

_CONTINUES: Final = 0x80
_LONGEST: Final = 10


def read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """Return the number that begins at ``at``, and where it ends.

    Args:
        data: the message.
        at: the position of the number's first byte.
        end: the end of what may be read.

    Raises:
        ValueError: it does not end before ``end``, or has more than ten bytes.
    """
    if at < end and (byte := data[at]) < _CONTINUES:  # nearly all have one byte
        return byte, at + 1
    value = 0
    for index in range(at, min(end, at + _LONGEST)):
        byte = data[index]
        value |= (byte & (_CONTINUES - 1)) << 7 * (index - at)
        if byte < _CONTINUES:
            return value, index + 1
    raise ValueError("a number is too long" if end - at >= _LONGEST else "it is cut off")


def write_varint(value: int) -> bytes:
    """Encode a number that is not negative."""
    out = bytearray()
    while value >= _CONTINUES:
        out.append(value & (_CONTINUES - 1) | _CONTINUES)
        value >>= 7
    out.append(value)
    return bytes(out)
