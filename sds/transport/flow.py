"""What may be sent and received on one stream.

Owns the state of one HTTP/2 stream (RFC 9113, section 5.1) and its two windows (section 5.2), and
what waits for the client to open its window. Invariant: windows change only here; what was queued
goes out in the order in which it came, the trailers last.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from sds.errors import Http2StreamError
from sds.transport.frames import MAX_WINDOW, ErrorCode

STREAM_WINDOW: Final = 256 * 1024
"""Bytes that a client may send on one stream before they are taken: a first request of Envoy
(61 KB) never waits."""
CONNECTION_WINDOW: Final = 16 * 1024 * 1024


class StreamState:
    """One open stream, from the server's side.

    Attributes:
        number: its identifier.
        head_sent: the response has begun.
        client_done: the client will send no more.
        send_window: bytes that the client still takes.
        waiting: what could not be sent yet.
        drained: how often all that waited has been sent.
        trailers: the block that ends the response, once nothing waits any more.
        expected: bytes that ``content-length`` still promises; None where it says nothing.
    """

    __slots__ = (
        "_receive_window",
        "_taken",
        "client_done",
        "drained",
        "expected",
        "head_sent",
        "number",
        "send_window",
        "trailers",
        "waiting",
    )

    def __init__(self, number: int, *, send_window: int) -> None:
        """A stream that a request has just opened."""
        self.number = number
        self.head_sent = False
        self.client_done = False
        self.send_window = send_window
        self.waiting: deque[memoryview] = deque()
        self.drained = 0
        self.trailers: bytes | None = None
        self.expected: int | None = None
        self._receive_window = STREAM_WINDOW
        self._taken = 0

    def receive(self, flow: int, payload: int) -> None:
        """Count a DATA frame: ``flow`` bytes of window, ``payload`` of content without padding.

        Raises:
            Http2StreamError: the window is too small, the client had said that it was done, or
                there is more than ``content-length`` says.
        """
        if self.client_done:
            raise Http2StreamError("DATA after the end of a stream", code=ErrorCode.STREAM_CLOSED)
        if flow > self._receive_window:
            raise Http2StreamError(
                "more DATA than the stream's window admits", code=ErrorCode.FLOW_CONTROL_ERROR
            )
        self._receive_window -= flow
        if self.expected is not None:
            self.expected -= payload
            if self.expected < 0:
                raise _length_mismatch()

    def end(self) -> None:
        """The client is done.

        Raises:
            Http2StreamError: there is less than ``content-length`` says.
        """
        if self.expected:
            raise _length_mismatch()
        self.client_done = True

    def take(self, count: int) -> int:
        """``count`` received bytes were taken; the increment to announce, 0 for none yet."""
        self._taken += count
        if self._taken < STREAM_WINDOW // 2 or self.client_done:
            return 0
        increment, self._taken = self._taken, 0
        self._receive_window += increment
        return increment

    def widen(self, increment: int) -> None:
        """The client takes so much more (or less, where it changed its settings).

        Raises:
            Http2StreamError: the window exceeds its largest size.
        """
        self.send_window += increment
        if self.send_window > MAX_WINDOW:
            raise Http2StreamError(
                "a window exceeds 2**31-1 bytes", code=ErrorCode.FLOW_CONTROL_ERROR
            )

    def next_chunk(self, most: int) -> memoryview:
        """Take at most ``most`` bytes of what waits; something waits."""
        first = self.waiting[0]
        if len(first) <= most:
            self.waiting.popleft()
            return first
        self.waiting[0] = first[most:]
        return first[:most]


def _length_mismatch() -> Http2StreamError:
    return Http2StreamError(
        "DATA differs from content-length in size", code=ErrorCode.PROTOCOL_ERROR
    )
