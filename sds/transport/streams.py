"""The streams of one connection (RFC 9113, section 5.1): which are open, and which were.

Owns the table of open streams and the numbers of the last ones that we reset. Invariants: no state
of a stream outlives it, but for those numbers, because frames that were on their way to a stream
that we reset are ignored; a stream's number is higher than those of all before it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.errors import Http2Error, Http2StreamError
from sds.slim import SlimDict
from sds.transport import frames
from sds.transport.events import Reset
from sds.transport.flow_control import StreamState
from sds.transport.frames import ErrorCode
from sds.transport.outgoing import Outgoing

if TYPE_CHECKING:
    from sds.transport.events import Event

_REMEMBERED_RESETS: Final = 256
_RESET_BYTES: Final = 72
"""Memory of one of them."""


class Streams:
    """See the module.

    Attributes:
        open: the open streams, by number.
        last: the highest number that the client used.
        out: what the connection sends.
    """

    __slots__ = ("_reset_by_us", "last", "open", "out")

    def __init__(self) -> None:
        """None is open."""
        self.open: SlimDict[int, StreamState] = SlimDict()
        self.last = 0
        self.out = Outgoing(self.open)
        self._reset_by_us: dict[int, None] = {}

    def check_new(self, number: int, most: int) -> bool:
        """HEADERS come for a stream that is not open; whether they open it.

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
        """A request opens a stream.

        Args:
            number: of the stream.
            expected: its ``content-length``.
            ended: it has no body.

        Raises:
            Http2StreamError: it has none, but a ``content-length``.
        """
        stream = StreamState(number)
        stream.expected = expected
        if ended:
            stream.end()
        self.open[number] = stream

    def check_known(self, number: int) -> None:
        """A stream that is over may be spoken of; one that never was may not.

        Raises:
            Http2Error: it never was.
        """
        if not number or number > self.last or not number % 2:
            raise Http2Error(f"stream {number} was never opened", code=ErrorCode.PROTOCOL_ERROR)

    def check_data_may_come(self, number: int) -> None:
        """DATA comes for a stream that is not open.

        Raises:
            Http2Error: it never was.
            Http2StreamError: it was, and we did not reset it.
        """
        self.check_known(number)
        if number not in self._reset_by_us:
            raise Http2StreamError("DATA on a closed stream", code=ErrorCode.STREAM_CLOSED)

    @property
    def held(self) -> int:
        """Return the bytes of memory of the numbers that are remembered."""
        return _RESET_BYTES * len(self._reset_by_us)

    # --- the end --------------------------------------------------------------------------------

    def end_if_drained(self, stream: StreamState) -> None:
        """Send the end of a stream on which nothing waits any more."""
        if stream.waiting or stream.trailers is None:
            return
        self.out.block(stream.number, stream.trailers, ends=True)
        del self.open[stream.number]
        self.out.closed()
        if not stream.client_done:  # it need not send the rest (RFC 9113, section 8.1)
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
        """All streams are over at once."""
        for stream in self.open.values():
            self.out.forget(stream)
        self.open.clear()

    def drop(self, number: int, error: Http2StreamError, events: list[Event]) -> None:
        """A client broke a rule on one stream."""
        self.say_reset(number, ErrorCode(error.code))
        if self.close(number):
            events.append(Reset(number, error.message))

    def say_reset(self, number: int, code: ErrorCode) -> None:
        """Tell the client that a stream is over."""
        if len(self._reset_by_us) >= _REMEMBERED_RESETS:
            del self._reset_by_us[next(iter(self._reset_by_us))]
        self._reset_by_us[number] = None
        self.out.frame(frames.rst_stream(number, code))
