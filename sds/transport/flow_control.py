"""What may be sent and received on one stream, and which stream sends next.

Owns the state of one HTTP/2 stream (RFC 9113, section 5.1), its two windows (section 5.2), and the
order of streams by the width of their windows. Invariants: what was queued on a stream is sent in
the order in which it came, the trailers last; a change of the client's initial window (section
6.9.2) touches no stream, because a stream keeps only its difference to that window.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING, Final

from sds.errors import Http2StreamError
from sds.transport.frames import ErrorCode
from sds.transport.output_pieces import alone, rest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

STREAM_WINDOW: Final = 256 * 1024
"""How many bytes a client may send on one stream before they are taken, so that a first request of
Envoy (61 KB) never waits."""
CONNECTION_WINDOW: Final = 16 * 1024 * 1024
_STALE_ENTRIES: Final = 64


class StreamState:
    """One open stream, from the server's side.

    Attributes:
        number: the stream's identifier.
        head_sent: whether the response has begun.
        client_done: whether the client has sent everything.
        credit: the send window, less the client's initial window: what WINDOW_UPDATE added and
            DATA took away. Negative once DATA was sent.
        waiting: what could not be sent yet.
        drained: how often everything that waited was sent.
        trailers: the block that ends the response, once nothing waits any more.
        expected: bytes that ``content-length`` still promises; None if it says nothing.
    """

    __slots__ = (
        "_receive_window",
        "_taken",
        "_window",
        "client_done",
        "credit",
        "drained",
        "expected",
        "head_sent",
        "number",
        "trailers",
        "waiting",
    )

    def __init__(self, number: int, window: int = STREAM_WINDOW) -> None:
        """Make a stream that a request has just opened; ``window`` is what we announced."""
        self.number = number
        self.head_sent = False
        self.client_done = False
        self.credit = 0
        self.waiting: deque[memoryview] = deque()
        self.drained = 0
        self.trailers: bytes | None = None
        self.expected: int | None = None
        self._window = self._receive_window = window
        self._taken = 0

    def receive(self, flow: int, payload: int) -> None:
        """Count a DATA frame: ``flow`` bytes of window, ``payload`` of content without padding.

        Raises:
            Http2StreamError: the window is too small, the client had ended the request, or there is
                more than ``content-length`` says.
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
        """Note that the client has ended the request.

        Raises:
            Http2StreamError: there is less than ``content-length`` says.
        """
        if self.expected:
            raise _length_mismatch()
        self.client_done = True

    def take(self, count: int) -> int:
        """Note that received bytes were taken; return the increment to announce, 0 for none yet."""
        self._taken += count
        if self._taken < self._window // 2 or self.client_done:
            return 0
        increment, self._taken = self._taken, 0
        self._receive_window += increment
        return increment

    def next_chunk(self, most: int) -> bytes | memoryview:
        """Take at most ``most`` bytes of what waits; call it only if something waits."""
        first = self.waiting[0]
        if len(first) <= most:
            self.waiting.popleft()
            return alone(first)
        self.waiting[0] = rest_of(first, most)
        return alone(first[:most])


class Widest:
    """Finds the stream with the most credit among some streams.

    This is a heap whose entries may be out of date: a stream whose credit grew is put in again,
    and one whose credit shrank is corrected when it comes to the top. So each call costs the
    logarithm of the number of calls of :meth:`put`, whatever else is open.
    """

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []

    def put(self, stream: StreamState, streams: Mapping[int, StreamState]) -> None:
        """Note that a stream joined ``streams``, or that its credit grew."""
        heappush(self._heap, (-stream.credit, stream.number))
        self.trim(streams)

    def trim(self, streams: Mapping[int, StreamState]) -> None:
        """Drop most entries that are out of date; call this when streams leave ``streams``."""
        heap = self._heap
        if len(heap) > 2 * len(streams) + _STALE_ENTRIES:  # as many calls paid for it
            numbers = {number for _, number in heap}
            heap[:] = [(-streams[number].credit, number) for number in numbers if number in streams]
            heapify(heap)

    def top(self, streams: Mapping[int, StreamState]) -> StreamState | None:
        """Return the stream with the most credit among those put in that are in ``streams``."""
        heap = self._heap
        while heap:
            negated, number = heap[0]
            stream = streams.get(number)
            if stream is None:
                heappop(heap)
            elif stream.credit != -negated:
                heapreplace(heap, (-stream.credit, number))
            else:
                return stream
        return None


def _length_mismatch() -> Http2StreamError:
    return Http2StreamError(
        "DATA differs from content-length in size", code=ErrorCode.PROTOCOL_ERROR
    )
