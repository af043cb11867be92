"""One HTTP/2 connection, from the server's side, without I/O.

Theory of operation
===================

``receive(data, now)`` takes bytes as they come and returns what they mean, as events;
``take_output()`` gives the bytes to be written, in order. In between, the server answers on
streams: ``send_message``, ``finish``, ``reset``. Nothing here waits: what a client's windows do
not admit is kept in the stream's state and is sent when a WINDOW_UPDATE comes.

``receive(data, now, most)`` ends after about ``most`` units of work (:data:`FRAME_WORK` and the
other constants). While ``busy`` is true, ``proceed(now, most)`` continues: a client that sends much
at once waits for its own turns.

The module implements the part of HTTP/2 (RFC 9113) that a gRPC server needs: no push, no
priorities (they are checked and ignored, section 5.3), no upgrade from HTTP/1.1. An error of a
stream is answered by RST_STREAM and the connection goes on; an error of the connection raises
:class:`~sds.errors.Http2Error` after GOAWAY was queued.

Invariants: only the numbers of the last streams that we reset outlive a stream (frames that were on
their way are ignored); windows, the size of header blocks, ``concurrent_streams`` and the rate of
frames bound how much a client can make us keep; the work for a frame is proportional to its bytes,
whatever else is open.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Final

from sds.errors import Http2Error, Http2StreamError, LimitError
from sds.transport import frames
from sds.transport.events import (
    ConnectionLimits,
    Drained,
    Opened,
    Received,
    Reset,
    add_received,
)
from sds.transport.field_blocks import FieldBlocks, check_priority, unpad
from sds.transport.flow_control import CONNECTION_WINDOW
from sds.transport.frame_reader import FrameReader
from sds.transport.frames import ErrorCode
from sds.transport.header_decoder import HeaderDecoder
from sds.transport.headers import (
    MAX_HEADER_LIST,
    check_trailers,
    content_length,
    request_head,
    trailers,
)
from sds.transport.rate import TokenBucket
from sds.transport.settings import apply_settings
from sds.transport.streams import Streams

if TYPE_CHECKING:
    from sds.transport.events import Event
    from sds.transport.frame_reader import Frame

FRAME_WORK: Final = 1
"""Units of work for any frame; one unit is about two microseconds."""
OPENED_WORK: Final = 16
"""Additional units for a request that begins."""
RESET_WORK: Final = 8
"""Additional units for a request that is cancelled."""
SENT_WORK: Final = 2
"""Units for a DATA frame that a window update set free."""
_BYTES_A_UNIT: Final = 1024
"""Bytes of DATA that cost another unit; taking the messages out of them is not counted here."""
_BLOCK_BYTES_A_UNIT: Final = 8
"""Bytes of a header block that cost another unit, if they are Huffman's or indexes."""
_FIELD_WORK: Final = 3
_SETTINGS_BYTES_A_UNIT: Final = 32
_CHUNK_OVERHEAD: Final = 256
"""Bytes of memory of a waiting piece beside its content."""
_NUMBER_BYTES: Final = 4
_PING_BYTES: Final = 8
_GOAWAY_BYTES: Final = 8


class Connection:
    """The protocol of one connection."""

    __slots__ = (
        "_blocks",
        "_bucket",
        "_decoder",
        "_greeted",
        "_limits",
        "_out",
        "_reader",
        "_streams",
        "_taken",
        "_work",
    )

    def __init__(self, limits: ConnectionLimits) -> None:
        """Begin a connection, and queue our settings."""
        self._limits = limits
        self._bucket = TokenBucket(per_second=limits.frames_per_second, burst=limits.frame_burst)
        self._decoder = HeaderDecoder()
        self._reader = FrameReader()
        self._blocks = FieldBlocks()
        self._streams = Streams(limits.stream_window)
        self._greeted = False
        self._taken = 0
        self._work = 0
        """Units of work that are left for this call."""
        self._out = self._streams.out
        self._out.frame(_greeting(limits))

    # --- asked from outside ---------------------------------------------------------------------

    @property
    def greeted(self) -> bool:
        """Say whether the client has shown that it speaks HTTP/2: its preface and SETTINGS came."""
        return self._greeted

    @property
    def streams(self) -> int:
        """Return how many streams are open."""
        return len(self._streams.open)

    @property
    def busy(self) -> bool:
        """Say whether :meth:`proceed` has something to do before more is received."""
        return self._reader.has_frame() or self._out.can_push()

    @property
    def held(self) -> int:
        """Return the bytes of memory that depend on the client: received, or waiting to be sent."""
        return self.in_use()[1]

    def in_use(self) -> tuple[int, int]:
        """Return :attr:`streams` and :attr:`held`: for every message, so not by properties."""
        out = self._out
        held = self._reader.held() + self._decoder.held + self._streams.held()
        if self._blocks.begun:
            held += self._blocks.held
        if out.waiting_chunks:
            held += out.waiting_bytes + out.waiting_chunks * _CHUNK_OVERHEAD
        return len(self._streams.open), held

    def take_output(self) -> list[bytes | memoryview]:
        """Return what is to be written now, in order."""
        return self._out.take()

    # --- answers --------------------------------------------------------------------------------

    def send_message(self, number: int, message: bytes) -> bool:
        """Send one gRPC message; return False if part of it waits for the client's windows.

        A stream that is over drops the message and returns True.
        """
        stream = self._streams.open.get(number)
        if stream is None or stream.trailers is not None:
            return True
        return self._out.message(stream, message)

    def send_now(self, number: int, message: bytes) -> bool:
        """Send one gRPC message if none of it has to wait; else do nothing and return False."""
        stream = self._streams.open.get(number)
        if stream is None or stream.trailers is not None:
            return True
        return self._out.message_now(stream, message)

    def finish(self, number: int, *, status: int, message: str = "") -> None:
        """End a stream with a gRPC status, after everything that waits on it."""
        stream = self._streams.open.get(number)
        if stream is not None and stream.trailers is None:
            stream.trailers = trailers(status, message, alone=not stream.head_sent)
            self._streams.end_if_drained(stream)

    def refuse(self, number: int, block: bytes) -> None:
        """Answer a stream with this header block and nothing else."""
        stream = self._streams.open.get(number)
        if stream is not None:
            stream.trailers = block
            self._streams.end_if_drained(stream)

    def cancel(self, number: int) -> None:
        """End a stream at once; what waits on it is lost."""
        if self._streams.close(number):
            self._streams.say_reset(number, ErrorCode.CANCEL)

    def waits(self, number: int) -> bool:
        """Say whether something on this stream waits for the client's windows."""
        stream = self._streams.open.get(number)
        return stream is not None and bool(stream.waiting)

    def waiting(self) -> dict[int, int]:
        """Return the streams on which something waits, each with how often it was drained."""
        return self._out.waiting()

    def take(self, number: int, count: int) -> None:
        """Note that bytes of a request were taken, so that the client may send as many more."""
        stream = self._streams.open.get(number)
        if stream is not None and (increment := stream.take(count)):
            self._out.frame(frames.window_update(number, increment))

    def go_away(self, text: str = "", code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Tell the client to open its next streams elsewhere, and why."""
        self._out.frame(frames.goaway(self._streams.last, code, text))

    def drop(self) -> None:
        """Drop everything that waits, because the connection is over."""
        self.drop_streams()
        self._out.take()

    def drop_streams(self) -> None:
        """End all streams at once, and ignore received bytes that were not yet read."""
        self._reader = FrameReader()
        self._streams.close_all()

    # --- what comes in --------------------------------------------------------------------------

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes as they come; :meth:`proceed` reads them.

        If the memory may change, the caller calls :meth:`keep` before it does.
        """
        self._reader.feed(data)

    def keep(self) -> None:
        """Copy the bytes that were fed and not yet read, because that memory may change now."""
        self._reader.keep()

    def receive(self, data: bytes, now: float, most: int = sys.maxsize) -> list[Event]:
        """Take bytes as they come, and return what they mean.

        Args:
            data: the next bytes of the connection.
            now: seconds of a monotonic clock.
            most: stop after about this many units of work.

        Raises:
            Http2Error: the connection is over; GOAWAY is in the output.
        """
        self._reader.feed(data)
        return self.proceed(now, most)

    def proceed(self, now: float, most: int = sys.maxsize) -> list[Event]:
        """Read received bytes, and send messages that the client's windows now admit.

        Raises:
            Http2Error: as for :meth:`receive`.
        """
        events: list[Event] = []
        self._work = most
        try:
            while self._work > 0 and (frame := self._reader.next()) is not None:
                self._work -= FRAME_WORK
                try:
                    self._on_frame(frame, now, events)
                except Http2StreamError as error:
                    self._streams.drop(frame.stream, error, events)
            # This is done once for all frames, and only for streams on which something can be sent.
            while self._work > 0 and (stream := self._out.push()) is not None:
                self._work -= SENT_WORK
                if not stream.waiting:
                    self._streams.end_if_drained(stream)
                    events.append(Drained(stream.number))
        except LimitError as error:
            self.go_away(error.message, ErrorCode.ENHANCE_YOUR_CALM)
            raise Http2Error(error.message, code=ErrorCode.ENHANCE_YOUR_CALM) from None
        except Http2Error as error:
            self.go_away(error.message, ErrorCode(error.code))
            raise
        return events

    def _on_frame(self, frame: Frame, now: float, events: list[Event]) -> None:
        kind, flags, number, payload = frame
        if not self._greeted:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise _broken("the first frame is not SETTINGS")
            self._greeted = True
        if self._blocks.begun:
            self._blocks.check_order(kind, number)
        if kind == frames.DATA:
            self._on_data(flags, number, payload, now, events)
            return
        self._bucket.take(now)
        handle = _HANDLERS.get(kind)
        if handle is not None:  # extensions are ignored (RFC 9113, section 5.5)
            handle(self, frame, events)

    # --- DATA -----------------------------------------------------------------------------------

    def _on_data(
        self, flags: int, number: int, payload: memoryview, now: float, events: list[Event]
    ) -> None:
        size = flow = len(payload)
        self._work -= flow // _BYTES_A_UNIT
        self._taken += flow
        if self._taken > CONNECTION_WINDOW:
            raise Http2Error(
                "more DATA than the connection's window admits", code=ErrorCode.FLOW_CONTROL_ERROR
            )
        # The streams' own windows bound what is kept, so the connection's window opens at once.
        if self._taken >= CONNECTION_WINDOW // 2:
            self._out.frame(frames.window_update(0, self._taken))
            self._taken = 0
        stream = self._streams.open.get(number)
        if stream is None:
            self._bucket.take(now)
            self._streams.check_data_may_come(number)
            return
        if flags & frames.PADDED:
            payload = unpad(payload)
            size = len(payload)
        ended = bool(flags & frames.END_STREAM)
        if not size and not ended:
            self._bucket.take(now)
        stream.receive(flow, size)
        if ended:
            stream.end()
        if size < flow:
            self.take(number, flow - size)
        add_received(events, number, payload, ended=ended)

    # --- HEADERS --------------------------------------------------------------------------------

    def _on_headers(self, frame: Frame, events: list[Event]) -> None:
        if not frame.stream % 2:
            raise _broken(f"a client cannot open stream {frame.stream}")
        block = self._blocks.headers(frame.payload, frame.flags, frame.stream)
        if block is not None:
            self._on_block(block.encoded, block.flags, block.stream, events)

    def _on_continuation(self, frame: Frame, events: list[Event]) -> None:
        block = self._blocks.continuation(frame.payload, frame.flags)
        if block is not None:
            self._on_block(block.encoded, block.flags, block.stream, events)

    def _on_block(self, block: bytes, flags: int, number: int, events: list[Event]) -> None:
        self._work -= len(block) // _BLOCK_BYTES_A_UNIT
        fields = self._decoder.decode(block)  # always, to keep the tables of both sides equal
        self._work -= len(fields) * _FIELD_WORK
        ended = bool(flags & frames.END_STREAM)
        stream = self._streams.open.get(number)
        if stream is not None:
            if stream.client_done:
                raise Http2StreamError("HEADERS after the end", code=ErrorCode.STREAM_CLOSED)
            if not ended:
                raise Http2StreamError("trailers do not end", code=ErrorCode.PROTOCOL_ERROR)
            check_trailers(fields)
            stream.end()
            events.append(Received(number, [], ended=True))
            return
        if not self._streams.check_new(number, self._limits.concurrent_streams):
            return
        self._work -= OPENED_WORK
        head = request_head(fields)
        self._streams.add(number, expected=content_length(head), ended=ended)
        events.append(Opened(number, head, ended))

    # --- the others -----------------------------------------------------------------------------

    def _on_window_update(self, frame: Frame, _events: list[Event]) -> None:
        if len(frame.payload) != _NUMBER_BYTES:
            raise Http2Error("WINDOW_UPDATE is malformed", code=ErrorCode.FRAME_SIZE_ERROR)
        increment = int.from_bytes(frame.payload, "big") & frames.STREAM_MASK
        if not frame.stream:
            self._out.widen(increment)
            return
        stream = self._streams.open.get(frame.stream)
        if stream is None:
            self._streams.check_known(frame.stream)
            return
        self._out.widen_stream(stream, increment)

    def _on_reset(self, frame: Frame, events: list[Event]) -> None:
        if len(frame.payload) != _NUMBER_BYTES:
            raise Http2Error("RST_STREAM is malformed", code=ErrorCode.FRAME_SIZE_ERROR)
        if not self._streams.close(frame.stream):
            self._streams.check_known(frame.stream)
            return
        self._work -= RESET_WORK
        code = int.from_bytes(frame.payload, "big")
        events.append(Reset(frame.stream, f"the client cancelled (code {code})"))

    def _on_settings(self, frame: Frame, _events: list[Event]) -> None:
        if frame.stream:
            raise _broken("SETTINGS on a stream")
        if frame.flags & frames.ACK:
            if frame.payload:
                raise Http2Error("an ACK of settings has content", code=ErrorCode.FRAME_SIZE_ERROR)
            return
        self._work -= len(frame.payload) // _SETTINGS_BYTES_A_UNIT
        apply_settings(frame.payload, self._out)
        self._out.frame(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _on_ping(self, frame: Frame, _events: list[Event]) -> None:
        if frame.stream:
            raise _broken("PING on a stream")
        if len(frame.payload) != _PING_BYTES:
            raise Http2Error("PING is malformed", code=ErrorCode.FRAME_SIZE_ERROR)
        if not frame.flags & frames.ACK:
            self._out.frame(frames.frame(frames.PING, frames.ACK, 0, bytes(frame.payload)))

    def _on_priority(self, frame: Frame, _events: list[Event]) -> None:
        check_priority(frame.payload, frame.stream, Http2StreamError)

    def _on_goaway(self, frame: Frame, _events: list[Event]) -> None:
        """Do nothing: the client opens no more streams, and the open ones go on."""
        if frame.stream or len(frame.payload) < _GOAWAY_BYTES:
            raise _broken("GOAWAY is malformed")

    def _on_push_promise(self, _frame: Frame, _events: list[Event]) -> None:
        raise _broken("a client cannot push")


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
    """Make what we send first: the same for every connection of a server."""
    values = {
        frames.SETTING_MAX_CONCURRENT_STREAMS: limits.concurrent_streams,
        frames.SETTING_INITIAL_WINDOW_SIZE: limits.stream_window,
        frames.SETTING_MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST,
    }
    window = frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
    return frames.settings(values) + window


def _broken(text: str) -> Http2Error:
    return Http2Error(text, code=ErrorCode.PROTOCOL_ERROR)
