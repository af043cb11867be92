"""Field blocks as they come in HEADERS and CONTINUATION (RFC 9113, sections 4.3, 6.2 and 6.10).

Owns the block that is being received. Invariants: between HEADERS and the end of its block no other
frame comes; a block is never larger than :data:`~sds.transport.headers.MAX_HEADER_BLOCK`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sds.errors import Http2Error
from sds.transport import frames
from sds.transport.frames import ErrorCode
from sds.transport.headers import MAX_HEADER_BLOCK

_PRIORITY_BYTES: Final = 5


class FieldBlock(NamedTuple):
    """A complete block, with the flags of its HEADERS frame."""

    stream: int
    flags: int
    encoded: bytes


class FieldBlocks:
    """Joins the pieces of field blocks."""

    __slots__ = ("_flags", "_received", "_stream", "begun")

    def __init__(self) -> None:
        self.begun = False
        """Whether a block goes on: asked for every frame."""
        self._received: bytearray | None = None
        self._stream = self._flags = 0

    @property
    def held(self) -> int:
        """Return the bytes of an incomplete block."""
        return 0 if self._received is None else len(self._received)

    def check_order(self, kind: int, number: int) -> None:
        """Check that a frame may come now.

        Raises:
            Http2Error: it interrupts a block.
        """
        if self._received is not None and (kind != frames.CONTINUATION or number != self._stream):
            raise Http2Error("a header block is interrupted", code=ErrorCode.PROTOCOL_ERROR)

    def headers(self, payload: memoryview, flags: int, number: int) -> FieldBlock | None:
        """Take HEADERS; return the block, None while it is incomplete.

        Raises:
            Http2Error: the frame is malformed. The block cannot be decoded then, so it is an error
                of the connection.
        """
        if flags & frames.PADDED:
            payload = unpad(payload)
        if flags & frames.PRIORITY_FLAG:
            check_priority(payload[:_PRIORITY_BYTES], number, Http2Error)
            payload = payload[_PRIORITY_BYTES:]
        if flags & frames.END_HEADERS:
            return FieldBlock(number, flags, bytes(payload))
        self._received = bytearray(payload)
        self.begun = True
        self._stream, self._flags = number, flags
        return None

    def continuation(self, payload: memoryview, flags: int) -> FieldBlock | None:
        """Take CONTINUATION; return the block, None while it is incomplete.

        Raises:
            Http2Error: it continues nothing, or the block is too large.
        """
        received = self._received
        if received is None:
            raise Http2Error("CONTINUATION continues nothing", code=ErrorCode.PROTOCOL_ERROR)
        received += payload
        if len(received) > MAX_HEADER_BLOCK:
            raise Http2Error("a header block is too large", code=ErrorCode.ENHANCE_YOUR_CALM)
        if not flags & frames.END_HEADERS:
            return None
        self._received = None
        self.begun = False
        return FieldBlock(self._stream, self._flags, bytes(received))


def unpad(payload: memoryview) -> memoryview:
    """Return the content of a padded frame (RFC 9113, section 6.1).

    Raises:
        Http2Error: the padding is as long as the frame.
    """
    if not payload or payload[0] >= len(payload):
        raise Http2Error("a frame's padding is as long as the frame", code=ErrorCode.PROTOCOL_ERROR)
    return payload[1 : len(payload) - payload[0]]


def check_priority(payload: memoryview, number: int, kind: type[Http2Error]) -> None:
    """Refuse a malformed priority; a valid one is ignored (RFC 9113, section 5.3).

    Raises:
        Http2Error: an error of the class ``kind``; of the connection if no stream is named.
    """
    if not number:
        raise Http2Error("PRIORITY of the connection", code=ErrorCode.PROTOCOL_ERROR)
    if len(payload) != _PRIORITY_BYTES:
        raise kind("a priority is malformed", code=ErrorCode.FRAME_SIZE_ERROR)
    if int.from_bytes(payload[:4], "big") & frames.STREAM_MASK == number:
        raise kind("a stream depends on itself", code=ErrorCode.PROTOCOL_ERROR)
