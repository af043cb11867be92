"""The streams of one connection (RFC 9113, section 5.1): the open ones, and those we reset.

Owns the table of open streams and the numbers of the last ones that we reset. Invariants: only
those numbers outlive a stream, so that frames that were on their way to it can be ignored; a
stream's number is higher than those of all streams before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.errors import Http2Error, Http2StreamError
from sds.shrinking_dict import ShrinkingDict
from sds.transport import frames
from sds.transport.events import Reset
from sds.transport.flow_control import StreamState
from sds.transport.frames import ErrorCode
from sds.transport.outgoing import Outgoing

if TYPE_CHECKING:
    from sds.transport.events import Event

_REMEMBERED_RESETS: Final = 256
_RESET_BYTES: Final = 72
"""Bytes of memory of one remembered number."""


class Streams:
    """The streams of one connection.

    Attributes:
        open: the open streams, by number.
        last: the highest number that the client used.
        out: what the connection sends.
    """

    __slots__ = ("_reset_by_us", "_window", "last", "open", "out")

    def __init__(self, window: int) -> None:
        """Begin without streams; each gets this window for what the client sends."""
        self._window = window
        self.open: ShrinkingDict[int, StreamState] = ShrinkingDict()
        self.last = 0
        self.out = Outgoing(self.open)
        self._reset_by_us: dict[int, None] = {}

    def check_new(self, number: int, most: int) -> bool:
        """Say whether HEADERS for a stream that is not open open it.

        Raises:
            Http2Error: the stream is closed.
            Http2StreamError: ``most`` streams are open.
        """
        if number <= self.last:
            if number in self._reset_by_us:
                return False
            raise Http2Error("HEADERS on a closed stream", code=ErrorCode.STREAM_CLOSED)
        self.last = number
        if len(self.open) >= most:
            raise Http2StreamError("too many streams", code=ErrorCode.REFUSED_STREAM)
        return True

    def add(self, number: int, *, expected: int | None, ended: bool) -> None:
        """Add the stream that a request opens.

        Args:
            number: the stream's number.
            expected: the request's ``content-length``.
            ended: whether the request has no body.

        Raises:
            Http2StreamError: it has no body, but a ``content-length`` above 0.
        """
        stream = StreamState(number, self._window)
        stream.expected = expected
        if ended:
            stream.end()
        self.open[number] = stream

    def check_known(self, number: int) -> None:
        """Check that a stream that is not open was open once.

        Raises:
            Http2Error: it never was.
        """
        if not number or number > self.last or not number % 2:
            raise Http2Error(f"stream {number} was never opened", code=ErrorCode.PROTOCOL_ERROR)

    def check_data_may_come(self, number: int) -> None:
        """Check whether DATA for a stream that is not open can be ignored.

        Raises:
            Http2Error: it never was.
            Http2StreamError: it was open, and we did not reset it.
        """
        self.check_known(number)
        if number not in self._reset_by_us:
            raise Http2StreamError("DATA on a closed stream", code=ErrorCode.STREAM_CLOSED)

    def held(self) -> int:
        """Return the bytes of memory of the numbers that are remembered."""
        return _RESET_BYTES * len(self._reset_by_us)

    # --- the end --------------------------------------------------------------------------------

    def end_if_drained(self, stream: StreamState) -> None:
        """Send the end of a stream if nothing waits on it any more."""
        if stream.waiting or stream.trailers is None:
            return
        self.out.block(stream.number, stream.trailers, ends=True)
        del self.open[stream.number]
        self.out.closed()
        if not stream.client_done:  # the client need not send the rest (RFC 9113, section 8.1)
            self.say_reset(stream.number, ErrorCode.NO_ERROR)

    def close(self, number: int) -> bool:
        """Close a stream at once; return False if it was not open."""
        stream = self.open.take(number)
        if stream is None:
            return False
        self.out.forget(stream)
        self.out.closed()
        return True

    def close_all(self) -> None:
        """Close all streams at once."""
        for stream in self.open.values():
            self.out.forget(stream)
        self.open.clear()

    def drop(self, number: int, error: Http2StreamError, events: list[Event]) -> None:
        """End a stream on which the client broke a rule."""
        self.say_reset(number, ErrorCode(error.code))
        if self.close(number):
            events.append(Reset(number, error.message))

    def say_reset(self, number: int, code: ErrorCode) -> None:
        """Send RST_STREAM to the client."""
        if len(self._reset_by_us) >= _REMEMBERED_RESETS:
            del self._reset_by_us[next(iter(self._reset_by_us))]
        self._reset_by_us[number] = None
        self.out.frame(frames.rst_stream(number, code))
