"""Cuts the bytes of a connection into frames (RFC 9113, sections 3.4 and 4.1).

Owns the preface, and the received bytes that were not yet read. Invariants: a frame is at most
:data:`~sds.transport.frames.DEFAULT_FRAME_SIZE` long, which is known before its payload is kept; a
byte is copied a bounded number of times, however small the pieces are in which it comes; after
:meth:`FrameReader.keep`, nothing here refers to the memory that was fed.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sds.errors import Http2Error
from sds.transport import frames
from sds.transport.frames import ErrorCode

_NOTHING: Final = memoryview(b"")
_HEAD: Final = frames.HEAD.unpack_from
_HEAD_BYTES: Final = frames.HEAD.size
_MOST_BYTES: Final = frames.DEFAULT_FRAME_SIZE


class Frame(NamedTuple):
    """One frame; the payload is a view of what was received, and good until more is."""

    kind: int
    flags: int
    stream: int
    payload: memoryview


class FrameReader:
    """Reads the frames of one connection."""

    __slots__ = ("_at", "_borrowed", "_data", "_greeted", "_needed", "_rest")

    def __init__(self) -> None:
        self._data = _NOTHING
        self._at = 0
        self._borrowed = False
        """Whether ``_data`` is memory that was fed and may change."""
        self._rest: bytearray | None = None
        """The beginning of an incomplete frame."""
        self._needed = 0
        """How many bytes ``_rest`` must have before it is read again."""
        self._greeted = False

    def held(self) -> int:
        """Return the number of received bytes that were not yet read."""
        if self._rest is not None:
            return len(self._rest)
        return len(self._data) - self._at

    def has_frame(self) -> bool:
        """Say whether :meth:`next` may have a frame to give before more is fed."""
        return self._at < len(self._data)

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes; if their memory may change, the caller calls :meth:`keep` before it does.

        While :meth:`has_frame` is true, each call copies what is held, so call :meth:`next` first.
        """
        if self._at < len(self._data):
            self._data, self._at = memoryview(b"".join((self._data[self._at :], data))), 0
            self._borrowed = False
        elif self._rest is None:
            self._data, self._at = memoryview(data), 0
            self._borrowed = True
        else:
            self._rest += data
            if len(self._rest) >= self._needed:
                self._data, self._at = memoryview(bytes(self._rest)), 0
                self._rest = None

    def keep(self) -> None:
        """Copy the bytes that were fed and not yet read, because that memory may change now."""
        if self._borrowed:
            self._borrowed = False
            if self._at < len(self._data):
                self._data, self._at = memoryview(bytes(self._data[self._at :])), 0

    def next(self) -> Frame | None:
        """Return the next frame, None while it is incomplete.

        Raises:
            Http2Error: the preface is wrong, or the frame is too large.
        """
        data, at = self._data, self._at
        left = len(data) - at
        if not left:
            return None
        if not self._greeted:
            if not self._take_preface(left):
                return None
            at = self._at
            left = len(data) - at
        if left < _HEAD_BYTES:
            self._keep(_HEAD_BYTES)
            return None
        high, low, kind, flags, number = _HEAD(data, at)
        length = high << 8 | low
        if length > _MOST_BYTES:
            raise Http2Error(
                f"a frame has {length} bytes, more than {frames.DEFAULT_FRAME_SIZE}",
                code=ErrorCode.FRAME_SIZE_ERROR,
            )
        size = _HEAD_BYTES + length
        if left < size:
            self._keep(size)
            return None
        self._at = at + size
        payload = data[at + _HEAD_BYTES : at + size]
        if self._at == len(data):
            self._data, self._at = _NOTHING, 0
        # As Frame(…), whose own constructor is a function of Python: this is for every frame.
        return tuple.__new__(Frame, (kind, flags, number & frames.STREAM_MASK, payload))

    def _keep(self, needed: int) -> None:
        """Keep what is there until ``needed`` bytes of a frame have come."""
        if self._at < len(self._data):
            self._rest = bytearray(self._data[self._at :])
            self._needed = needed
        self._data, self._at = _NOTHING, 0

    def _take_preface(self, left: int) -> bool:
        """Say whether the preface is complete, and skip it then."""
        size = len(frames.PREFACE)
        if self._data[:size] != frames.PREFACE[:left]:
            raise Http2Error("what the client speaks is not HTTP/2", code=ErrorCode.PROTOCOL_ERROR)
        if left < size:
            self._rest = bytearray(self._data)
            self._needed = left + 1  # to notice a wrong byte as soon as it comes
            self._data, self._at = _NOTHING, 0
            return False
        self._greeted = True
        self._at = size
        return True
