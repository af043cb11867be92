"""One HTTP/2 connection, from the server's side, without I/O.

Theory of operation
===================

``receive(data, now)`` takes bytes as they come and returns what they meant, as events;
``take_output()`` gives the bytes that are to be written, in order. In between, the server answers
on streams: ``send_message``, ``finish``, ``reset``. Nothing here waits: what a client's windows do
not admit is kept in the stream's state and goes out when a WINDOW_UPDATE comes.

Of HTTP/2 (RFC 9113) there is what a gRPC server needs: no push, no priorities (they are checked
and ignored, section 5.3), no upgrade from HTTP/1.1. Errors of a stream are answered by RST_STREAM
and the connection goes on; errors of the connection raise :class:`~sds.errors.Http2Error` after
GOAWAY was queued.

Invariants: no state of a stream outlives it, but for the numbers of the last streams that we reset
(frames that were on their way are ignored); what a client can make us hold is bounded by windows,
by the size of header blocks, by ``concurrent_streams`` and by the rate of its frames.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from sds.errors import Http2Error, Http2StreamError, LimitError
from sds.transport import frames
from sds.transport.flow import CONNECTION_WINDOW, STREAM_WINDOW, StreamState
from sds.transport.frames import ErrorCode
from sds.transport.headers import (
    MAX_HEADER_BLOCK,
    MAX_HEADER_LIST,
    HeaderDecoder,
    check_trailers,
    content_length,
    request_head,
    trailers,
)
from sds.transport.outgoing import Outgoing
from sds.transport.rate import TokenBucket

if TYPE_CHECKING:
    from sds.transport.headers import RequestHead

_PING_BYTES: Final = 8
_PRIORITY_BYTES: Final = 5
_NUMBER_BYTES: Final = 4
_SETTING_BYTES: Final = 6
_GOAWAY_BYTES: Final = 8
_REMEMBERED_RESETS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one connection may do.

    Attributes:
        concurrent_streams: streams that are open at the same time; one more is refused.
        frames_per_second: frames other than DATA, in the long run.
        frame_burst: such frames at once.
    """

    concurrent_streams: int = 2_100
    frames_per_second: float = 1_000.0
    frame_burst: int = 20_000


class Opened(NamedTuple):
    """A request began; with ``ended`` it has no body."""

    stream: int
    head: RequestHead
    ended: bool


class Received(NamedTuple):
    """Bytes of a request's body."""

    stream: int
    payload: memoryview
    ended: bool


class Reset(NamedTuple):
    """The stream is over: the client cancelled it, or broke a rule."""

    stream: int
    why: str


class Drained(NamedTuple):
    """What waited on a stream has been handed on."""

    stream: int


Event = Opened | Received | Reset | Drained


class Connection:
    """See the module."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_stream",
        "_bucket",
        "_decoder",
        "_greeted",
        "_initial_window",
        "_last_stream",
        "_limits",
        "_out",
        "_reset_by_us",
        "_rest",
        "_streams",
        "_taken",
    )

    def __init__(self, limits: ConnectionLimits) -> None:
        """Our settings are queued."""
        self._limits = limits
        self._bucket = TokenBucket(per_second=limits.frames_per_second, burst=limits.frame_burst)
        self._decoder = HeaderDecoder()
        self._streams: dict[int, StreamState] = {}
        self._reset_by_us: dict[int, None] = {}
        self._last_stream = 0
        self._rest = b""
        self._greeted = 0
        """0: no preface yet; 1: preface; 2: and SETTINGS."""
        self._block: bytearray | None = None
        self._block_stream = self._block_flags = 0
        self._initial_window = frames.DEFAULT_WINDOW
        self._taken = 0
        self._out = Outgoing()
        self._out.frame(_greeting(limits))

    # --- asked from outside ---------------------------------------------------------------------

    @property
    def greeted(self) -> bool:
        """The client has shown that it speaks HTTP/2."""
        return self._greeted > 1

    @property
    def streams(self) -> int:
        """Open streams."""
        return len(self._streams)

    def take_output(self) -> list[bytes | memoryview]:
        """What is to be written now, in order."""
        return self._out.take()

    # --- answers --------------------------------------------------------------------------------

    def send_message(self, number: int, message: bytes) -> bool:
        """Send one gRPC message; False where part of it waits for the client's windows.

        A stream that is over takes nothing and says True.
        """
        stream = self._streams.get(number)
        if stream is None or stream.trailers is not None:
            return True
        return self._out.message(stream, message)

    def finish(self, number: int, *, status: int, message: str = "") -> None:
        """End a stream with a gRPC status, after all that waits on it."""
        stream = self._streams.get(number)
        if stream is not None and stream.trailers is None:
            stream.trailers = trailers(status, message, alone=not stream.head_sent)
            self._push(stream)

    def refuse(self, number: int, block: bytes) -> None:
        """Answer a stream with this header block and nothing else."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.trailers = block
            self._push(stream)

    def reset(self, number: int, code: ErrorCode) -> None:
        """End a stream at once; what waits on it is lost."""
        if self._streams.pop(number, None) is not None:
            self._say_reset(number, code)

    def waits(self, number: int) -> bool:
        """Whether something on this stream waits for the client's windows."""
        stream = self._streams.get(number)
        return stream is not None and bool(stream.waiting)

    def waiting(self) -> dict[int, int]:
        """The streams on which something waits, each with how often it was drained before."""
        return {
            number: stream.drained for number, stream in self._streams.items() if stream.waiting
        }

    def take(self, number: int, count: int) -> None:
        """``count`` bytes of a request were taken: the client may send as many more."""
        stream = self._streams.get(number)
        if stream is not None and (increment := stream.take(count)):
            self._out.frame(frames.window_update(number, increment))

    def go_away(self) -> None:
        """Tell the client to open its next streams elsewhere."""
        self._out.frame(frames.goaway(self._last_stream, ErrorCode.NO_ERROR))

    def drop(self) -> None:
        """The connection is over: let go of what waited on streams."""
        self._streams.clear()
        self._out.take()

    # --- what comes in --------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take bytes as they came.

        Args:
            data: the next bytes of the connection.
            now: seconds of a monotonic clock.

        Raises:
            Http2Error: the connection is over; GOAWAY is in the output.
        """
        events: list[Event] = []
        try:
            self._receive(data, now, events)
        except LimitError as error:
            self._out.frame(
                frames.goaway(self._last_stream, ErrorCode.ENHANCE_YOUR_CALM, error.message)
            )
            raise Http2Error(error.message, code=ErrorCode.ENHANCE_YOUR_CALM) from None
        except Http2Error as error:
            code = ErrorCode(error.code)
            self._out.frame(frames.goaway(self._last_stream, code, error.message))
            raise
        return events

    def _receive(self, data: bytes, now: float, events: list[Event]) -> None:
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = 0
        if not self._greeted:
            at = self._take_preface(data)
        end = len(data)
        view = memoryview(data)
        while end - at >= frames.HEAD_BYTES:
            length, kind, flags, number = frames.parse_head(data, at)
            if length > frames.DEFAULT_FRAME_SIZE:
                raise Http2Error(
                    f"a frame has {length} bytes, {frames.DEFAULT_FRAME_SIZE} are admitted",
                    code=ErrorCode.FRAME_SIZE_ERROR,
                )
            start = at + frames.HEAD_BYTES
            stop = start + length
            if stop > end:
                break
            at = stop
            try:
                if kind == frames.DATA:
                    self._on_data(view[start:stop], flags, number, now, events)
                else:
                    self._bucket.take(now)
                    self._on_frame(kind, flags, number, data[start:stop], events)
            except Http2StreamError as error:
                self._drop(number, error, events)
        if at < end:
            self._rest = data[at:]

    def _take_preface(self, data: bytes) -> int:
        """Where the first frame begins in ``data``; at its end while the preface is not whole."""
        size = len(frames.PREFACE)
        if data[:size] != frames.PREFACE[: len(data)]:
            raise _broken("what the client speaks is not HTTP/2")
        if len(data) < size:
            self._rest = data
            return len(data)
        self._greeted = 1
        return size

    def _on_frame(
        self, kind: int, flags: int, number: int, payload: bytes, events: list[Event]
    ) -> None:
        if self._greeted == 1:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise _broken("the first frame is not SETTINGS")
            self._greeted = 2
        if self._block is not None and (
            kind != frames.CONTINUATION or number != self._block_stream
        ):
            raise _broken("a header block is interrupted")
        handle = _HANDLERS.get(kind)
        if handle is not None:  # extensions are ignored (RFC 9113, section 5.5)
            handle(self, payload, flags, number, events)

    # --- DATA -----------------------------------------------------------------------------------

    def _on_data(
        self, payload: memoryview, flags: int, number: int, now: float, events: list[Event]
    ) -> None:
        if self._block is not None:
            raise _broken("a header block is interrupted")
        flow = len(payload)
        self._taken += flow
        if self._taken > CONNECTION_WINDOW:
            raise Http2Error(
                "more DATA than the connection's window admits", code=ErrorCode.FLOW_CONTROL_ERROR
            )
        # What streams hold is bounded by their own windows: the connection's opens at once.
        if self._taken >= CONNECTION_WINDOW // 2:
            self._out.frame(frames.window_update(0, self._taken))
            self._taken = 0
        stream = self._streams.get(number)
        if stream is None:
            self._bucket.take(now)
            self._on_data_without_stream(number)
            return
        if flags & frames.PADDED:
            payload = _unpad(payload)
        ended = bool(flags & frames.END_STREAM)
        if not payload and not ended:
            self._bucket.take(now)
        stream.receive(flow, len(payload))
        if ended:
            stream.end()
        if padding := flow - len(payload):
            self.take(number, padding)
        events.append(Received(number, payload, ended))

    def _on_data_without_stream(self, number: int) -> None:
        if not number or number > self._last_stream or not number % 2:
            raise _broken("DATA on a stream that was never opened")
        if number not in self._reset_by_us:
            raise Http2StreamError("DATA on a closed stream", code=ErrorCode.STREAM_CLOSED)

    # --- HEADERS --------------------------------------------------------------------------------

    def _on_headers(self, payload: bytes, flags: int, number: int, events: list[Event]) -> None:
        if not number % 2:
            raise _broken(f"a client cannot open stream {number}")
        if flags & frames.PADDED:
            payload = bytes(_unpad(memoryview(payload)))
        if flags & frames.PRIORITY_FLAG:
            _check_priority(payload[:_PRIORITY_BYTES], number, Http2Error)
            payload = payload[_PRIORITY_BYTES:]
        if flags & frames.END_HEADERS:
            self._on_block(payload, flags, number, events)
        else:
            self._block = bytearray(payload)
            self._block_stream, self._block_flags = number, flags

    def _on_continuation(
        self, payload: bytes, flags: int, number: int, events: list[Event]
    ) -> None:
        block = self._block
        if block is None:
            raise _broken("CONTINUATION continues nothing")
        block += payload
        if len(block) > MAX_HEADER_BLOCK:
            raise Http2Error("a header block is too large", code=ErrorCode.ENHANCE_YOUR_CALM)
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(bytes(block), self._block_flags, number, events)

    def _on_block(self, block: bytes, flags: int, number: int, events: list[Event]) -> None:
        fields = self._decoder.decode(block)  # always: the tables of both sides must stay alike
        ended = bool(flags & frames.END_STREAM)
        stream = self._streams.get(number)
        if stream is not None:
            if stream.client_done:
                raise Http2StreamError("HEADERS after the end", code=ErrorCode.STREAM_CLOSED)
            if not ended:
                raise Http2StreamError("trailers do not end", code=ErrorCode.PROTOCOL_ERROR)
            check_trailers(fields)
            stream.end()
            events.append(Received(number, memoryview(b""), ended=True))
            return
        if number <= self._last_stream:
            if number in self._reset_by_us:
                return
            raise Http2Error("HEADERS on a closed stream", code=ErrorCode.STREAM_CLOSED)
        self._last_stream = number
        if len(self._streams) >= self._limits.concurrent_streams:
            raise Http2StreamError("too many streams", code=ErrorCode.REFUSED_STREAM)
        head = request_head(fields)
        expected = content_length(head)
        opened = StreamState(number, send_window=self._initial_window)
        opened.expected = expected
        if ended:
            opened.end()
        self._streams[number] = opened
        events.append(Opened(number, head, ended))

    # --- the others -----------------------------------------------------------------------------

    def _on_window_update(
        self, payload: bytes, _flags: int, number: int, events: list[Event]
    ) -> None:
        if len(payload) != _NUMBER_BYTES:
            raise Http2Error("WINDOW_UPDATE is malformed", code=ErrorCode.FRAME_SIZE_ERROR)
        increment = int.from_bytes(payload, "big") & frames.STREAM_MASK
        if not number:
            self._out.window += increment
            if not increment or self._out.window > frames.MAX_WINDOW:
                raise Http2Error(
                    "the connection's window cannot change so",
                    code=ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR,
                )
            self._push_all(events)
            return
        stream = self._streams.get(number)
        if stream is None:
            self._check_known(number)
            return
        if not increment:
            raise Http2StreamError("a window grows by 0", code=ErrorCode.PROTOCOL_ERROR)
        stream.widen(increment)
        self._push_waiting(stream, events)

    def _on_reset(self, payload: bytes, _flags: int, number: int, events: list[Event]) -> None:
        if len(payload) != _NUMBER_BYTES:
            raise Http2Error("RST_STREAM is malformed", code=ErrorCode.FRAME_SIZE_ERROR)
        if self._streams.pop(number, None) is None:
            self._check_known(number)
            return
        events.append(
            Reset(number, f"the client cancelled (code {int.from_bytes(payload, 'big')})")
        )

    def _check_known(self, number: int) -> None:
        """A stream that is over may be spoken of; one that never was may not."""
        if not number or number > self._last_stream or not number % 2:
            raise _broken(f"stream {number} was never opened")

    def _on_settings(self, payload: bytes, flags: int, number: int, events: list[Event]) -> None:
        if number:
            raise _broken("SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise Http2Error("an ACK of settings has content", code=ErrorCode.FRAME_SIZE_ERROR)
            return
        if len(payload) % _SETTING_BYTES:
            raise Http2Error("SETTINGS are malformed", code=ErrorCode.FRAME_SIZE_ERROR)
        for identifier, value in frames.parse_settings(payload):
            self._set(identifier, value)
        self._out.frame(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self._push_all(events)

    def _set(self, identifier: int, value: int) -> None:
        match identifier:
            case frames.SETTING_INITIAL_WINDOW_SIZE:
                if value > frames.MAX_WINDOW:
                    raise Http2Error("a window is too large", code=ErrorCode.FLOW_CONTROL_ERROR)
                difference, self._initial_window = value - self._initial_window, value
                for stream in self._streams.values():
                    try:
                        stream.widen(difference)
                    except Http2StreamError as error:  # here it is the connection's (6.9.2)
                        raise Http2Error(error.message, code=error.code) from None
            case frames.SETTING_MAX_FRAME_SIZE:
                if not frames.DEFAULT_FRAME_SIZE <= value <= frames.MAX_FRAME_SIZE:
                    raise _broken(f"a frame size of {value} is not allowed")
            case frames.SETTING_ENABLE_PUSH:
                if value > 1:
                    raise _broken("ENABLE_PUSH is neither 0 nor 1")
            case frames.SETTING_HEADER_TABLE_SIZE:
                self._out.table_changed = True
            case _:
                pass

    def _on_ping(self, payload: bytes, flags: int, number: int, _events: list[Event]) -> None:
        if number:
            raise _broken("PING on a stream")
        if len(payload) != _PING_BYTES:
            raise Http2Error("PING is malformed", code=ErrorCode.FRAME_SIZE_ERROR)
        if not flags & frames.ACK:
            self._out.frame(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_priority(self, payload: bytes, _flags: int, number: int, _events: list[Event]) -> None:
        _check_priority(payload, number, Http2StreamError)

    def _on_goaway(self, payload: bytes, _flags: int, number: int, _events: list[Event]) -> None:
        """The client opens no more streams: those that are open go on."""
        if number or len(payload) < _GOAWAY_BYTES:
            raise _broken("GOAWAY is malformed")

    def _on_push_promise(
        self, _payload: bytes, _flags: int, _number: int, _events: list[Event]
    ) -> None:
        raise _broken("a client cannot push")

    # --- what goes out --------------------------------------------------------------------------

    def _push(self, stream: StreamState) -> bool:
        """Send what the windows admit, and the end after it; whether nothing waits any more."""
        if not self._out.push(stream):
            return False
        if stream.trailers is not None:
            self._out.block(stream.number, stream.trailers, ends=True)
            del self._streams[stream.number]
            if not stream.client_done:  # it need not send the rest (RFC 9113, section 8.1)
                self._say_reset(stream.number, ErrorCode.NO_ERROR)
        return True

    def _push_waiting(self, stream: StreamState, events: list[Event]) -> None:
        if stream.waiting and self._push(stream):
            events.append(Drained(stream.number))

    def _push_all(self, events: list[Event]) -> None:
        for stream in [one for one in self._streams.values() if one.waiting]:
            self._push_waiting(stream, events)

    def _drop(self, number: int, error: Http2StreamError, events: list[Event]) -> None:
        """A client broke a rule on one stream."""
        self._say_reset(number, ErrorCode(error.code))
        if self._streams.pop(number, None) is not None:
            events.append(Reset(number, error.message))

    def _say_reset(self, number: int, code: ErrorCode) -> None:
        if len(self._reset_by_us) >= _REMEMBERED_RESETS:
            del self._reset_by_us[next(iter(self._reset_by_us))]
        self._reset_by_us[number] = None
        self._out.frame(frames.rst_stream(number, code))


_HANDLERS: Final = {
    frames.HEADERS: Connection._on_headers,  # noqa: SLF001  the class's own table of methods
    frames.CONTINUATION: Connection._on_continuation,  # noqa: SLF001
    frames.WINDOW_UPDATE: Connection._on_window_update,  # noqa: SLF001
    frames.RST_STREAM: Connection._on_reset,  # noqa: SLF001
    frames.SETTINGS: Connection._on_settings,  # noqa: SLF001
    frames.PING: Connection._on_ping,  # noqa: SLF001
    frames.PRIORITY: Connection._on_priority,  # noqa: SLF001
    frames.GOAWAY: Connection._on_goaway,  # noqa: SLF001
    frames.PUSH_PROMISE: Connection._on_push_promise,  # noqa: SLF001
}


@functools.lru_cache(maxsize=8)
def _greeting(limits: ConnectionLimits) -> bytes:
    """What we send first: the same for every connection of a server."""
    values = {
        frames.SETTING_MAX_CONCURRENT_STREAMS: limits.concurrent_streams,
        frames.SETTING_INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        frames.SETTING_MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
    }
    window = frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
    return frames.settings(values) + window


def _broken(text: str) -> Http2Error:
    return Http2Error(text, code=ErrorCode.PROTOCOL_ERROR)


def _unpad(payload: memoryview) -> memoryview:
    """The content of a padded frame (RFC 9113, section 6.1)."""
    if not payload or payload[0] >= len(payload):
        raise _broken("a frame's padding is as long as the frame")
    return payload[1 : len(payload) - payload[0]]


def _check_priority(payload: bytes, number: int, kind: type[Http2Error]) -> None:
    """Priorities are ignored, but not what is malformed about them (RFC 9113, section 5.3).

    In front of a header block it is the connection's error: the block is not decoded then.
    """
    if not number:
        raise _broken("PRIORITY of the connection")
    if len(payload) != _PRIORITY_BYTES:
        raise kind("a priority is malformed", code=ErrorCode.FRAME_SIZE_ERROR)
    if int.from_bytes(payload[:4], "big") & frames.STREAM_MASK == number:
        raise kind("a stream depends on itself", code=ErrorCode.PROTOCOL_ERROR)
