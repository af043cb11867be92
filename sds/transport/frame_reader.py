"""Cuts the bytes of a connection into frames (RFC 9113, sections 3.4 and 4.1).

Owns the preface and what was received and not yet looked at. Invariants: a frame is at most
:data:`~sds.transport.frames.DEFAULT_FRAME_SIZE` long, which is known before its payload is kept; a
byte is copied a bounded number of times, however small the pieces are in which it comes.
"""

from __future__ import annotations

from typing import NamedTuple

from sds.errors import Http2Error
from sds.transport import frames
from sds.transport.frames import ErrorCode


class Frame(NamedTuple):
    """One frame; the payload is a view of what was received."""

    kind: int
    flags: int
    stream: int
    payload: memoryview


class FrameReader:
    """See the module."""

    __slots__ = ("_at", "_data", "_greeted", "_needed", "_rest")

    def __init__(self) -> None:
        """Nothing was received, not even the preface."""
        self._data = b""
        self._at = 0
        self._rest: bytearray | None = None
        """The beginning of a frame whose end has not come."""
        self._needed = 0
        """Bytes that ``_rest`` has when there is something to see."""
        self._greeted = False

    @property
    def held(self) -> int:
        """Bytes that were received and not yet looked at."""
        if self._rest is not None:
            return len(self._rest)
        return len(self._data) - self._at

    @property
    def has_frame(self) -> bool:
        """Whether :meth:`next` may have something to give before more is fed."""
        return self._at < len(self._data)

    def feed(self, data: bytes) -> None:
        """Take bytes as they come.

        While :attr:`has_frame`, each call copies what is held: call :meth:`next` first.
        """
        if self._at < len(self._data):
            self._data = self._data[self._at :] + data
            self._at = 0
        elif self._rest is None:
            self._data = data
            self._at = 0
        else:
            self._rest += data
            if len(self._rest) >= self._needed:
                self._data, self._at = bytes(self._rest), 0
                self._rest = None

    def next(self) -> Frame | None:
        """The next frame, None while it is not whole.

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
        if left < frames.HEAD_BYTES:
            self._keep(frames.HEAD_BYTES)
            return None
        length, kind, flags, number = frames.parse_head(data, at)
        if length > frames.DEFAULT_FRAME_SIZE:
            raise Http2Error(
                f"a frame has {length} bytes, {frames.DEFAULT_FRAME_SIZE} are admitted",
                code=ErrorCode.FRAME_SIZE_ERROR,
            )
        size = frames.HEAD_BYTES + length
        if left < size:
            self._keep(size)
            return None
        self._at = at + size
        payload = memoryview(data)[at + frames.HEAD_BYTES : at + size]
        if self._at == len(data):
            self._data, self._at = b"", 0
        return Frame(kind, flags, number, payload)

    def _keep(self, needed: int) -> None:
        """Wait until ``needed`` bytes of a frame are there."""
        if self._at < len(self._data):
            self._rest = bytearray(memoryview(self._data)[self._at :])
            self._needed = needed
        self._data, self._at = b"", 0

    def _take_preface(self, left: int) -> bool:
        """Whether the preface is whole; it is passed then."""
        size = len(frames.PREFACE)
        if self._data[:size] != frames.PREFACE[:left]:
            raise Http2Error("what the client speaks is not HTTP/2", code=ErrorCode.PROTOCOL_ERROR)
        if left < size:
            self._rest = bytearray(self._data)
            self._needed = left + 1  # so that a wrong byte is noticed when it comes
            self._data, self._at = b"", 0
            return False
        self._greeted = True
        self._at = size
        return True
