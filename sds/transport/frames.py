"""The layout of HTTP/2 frames.

Owns numbers and byte layouts of RFC 9113, sections 4, 6 and 7, and no state. Invariant: any HTTP/2
peer can read these frames with the initial settings of a connection.
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""The bytes that a client sends first (RFC 9113, section 3.4)."""
HEAD: Final = struct.Struct(">HBBBI")
"""The nine bytes before each payload: the upper 16 and lower 8 bits of its length, type, flags and
stream (RFC 9113, section 4.1)."""
_SETTING: Final = struct.Struct(">HI")
STREAM_MASK: Final = 0x7FFF_FFFF
"""Masks the highest bit of a stream identifier or an increment, which is reserved."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY = range(8)
WINDOW_UPDATE, CONTINUATION = 8, 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

SETTING_HEADER_TABLE_SIZE: Final = 1
SETTING_ENABLE_PUSH: Final = 2
SETTING_MAX_CONCURRENT_STREAMS: Final = 3
SETTING_INITIAL_WINDOW_SIZE: Final = 4
SETTING_MAX_FRAME_SIZE: Final = 5
SETTING_MAX_HEADER_LIST_SIZE: Final = 6

DEFAULT_WINDOW: Final = 65_535
MAX_WINDOW: Final = 2**31 - 1
DEFAULT_FRAME_SIZE: Final = 16_384
MAX_FRAME_SIZE: Final = 2**24 - 1
_MOST_DEBUG_DATA: Final = 256


class ErrorCode(enum.IntEnum):
    """The error codes of RFC 9113, section 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """Encode the nine bytes before a payload of ``length``."""
    return HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Encode a whole frame."""
    return head(len(payload), kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """Encode a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*item) for item in values.items()))


def iter_settings(payload: memoryview) -> Iterator[tuple[int, int]]:
    """Yield identifiers and values, in order; ``payload`` is a multiple of six bytes."""
    return _SETTING.iter_unpack(payload)


def rst_stream(stream: int, code: ErrorCode) -> bytes:
    """Encode the end of one stream."""
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def window_update(stream: int, increment: int) -> bytes:
    """Encode a WINDOW_UPDATE; stream 0 means the connection."""
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def goaway(last_stream: int, code: ErrorCode, text: str = "") -> bytes:
    """Encode the end of the connection, once streams up to ``last_stream`` are over."""
    about = text.encode(errors="replace")[:_MOST_DEBUG_DATA]
    payload = last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + about
    return frame(GOAWAY, 0, 0, payload)
