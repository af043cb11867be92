"""The output of one connection: frames in order, within the client's windows.

Owns the output, the window of the connection, the client's initial window, and which streams wait.
Invariants: DATA never exceeds the connection's window, the stream's window or the frame size that
every client accepts (the larger sizes that some clients offer would gain nothing); a stream is
looked at only when something of it can be sent, so a change of a window costs no more than the
frames that it sets free.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from sds.errors import Http2Error, Http2StreamError
from sds.shrinking_dict import ShrinkingDict
from sds.transport import frames
from sds.transport.flow_control import Widest
from sds.transport.headers import RESPONSE_HEAD, resized_table
from sds.transport.messages import PREFIX_BYTES, prefix
from sds.transport.output_pieces import kept

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sds.transport.flow_control import StreamState

_START: Final = struct.Struct(">HBBBIBI")
"""The head of a DATA frame (:func:`sds.transport.frames.head`) and the prefix of a message
(:func:`sds.transport.messages.prefix`), which together are sent most often."""


class Outgoing:
    """Queues what a connection sends.

    Args:
        streams: the open streams of the connection, by number; read only.

    Attributes:
        window: how many bytes the client still accepts on all streams together.
        table_changed: whether the client changed the size of its header table, so that the next
            header block must answer it.
        waiting_bytes: bytes of memory of what waits for windows.
        waiting_chunks: pieces in which they wait.
    """

    __slots__ = (
        "_initial_window",
        "_output",
        "_streams",
        "_waiting",
        "_widened",
        "_widest",
        "table_changed",
        "waiting_bytes",
        "waiting_chunks",
        "window",
    )

    def __init__(self, streams: Mapping[int, StreamState]) -> None:
        self._output: list[bytes | memoryview] = []
        self._streams = streams
        self._initial_window = frames.DEFAULT_WINDOW
        self._waiting: ShrinkingDict[int, StreamState] = ShrinkingDict()
        self._widest: Widest | None = None
        """The streams that wait."""
        self._widened: Widest | None = None
        """The open streams that had a WINDOW_UPDATE."""
        self.window = frames.DEFAULT_WINDOW
        self.table_changed = False
        self.waiting_bytes = self.waiting_chunks = 0

    def take(self) -> list[bytes | memoryview]:
        """Return what is to be written now, in order."""
        output, self._output = self._output, []
        return output

    def frame(self, encoded: bytes) -> None:
        """Queue a frame that no window holds back."""
        self._output.append(encoded)

    def block(self, number: int, block: bytes, *, ends: bool) -> None:
        """Queue a header block of a stream."""
        if self.table_changed:
            self.table_changed = False
            block = resized_table(block)
        flags = frames.END_HEADERS | (frames.END_STREAM if ends else 0)
        self._output.append(frames.frame(frames.HEADERS, flags, number, block))

    # --- messages -------------------------------------------------------------------------------

    def message(self, stream: StreamState, message: bytes) -> bool:
        """Send one gRPC message, and the head before the first; say whether all of it is queued."""
        if not self.message_now(stream, message):
            self._begin(stream)
            self._wait(stream, message)
        return not stream.waiting

    def message_now(self, stream: StreamState, message: bytes) -> bool:
        """Send one gRPC message if the windows admit all of it; else only return False."""
        size = PREFIX_BYTES + len(message)
        if stream.waiting or size > self.window or size > stream.credit + self._initial_window:
            return False
        if not stream.head_sent:
            self._begin(stream)
        if size > frames.DEFAULT_FRAME_SIZE:
            self._wait(stream, message)
            return True
        # In the usual case there is one frame, and the message itself is not copied.
        self.window -= size
        stream.credit -= size
        length = size - PREFIX_BYTES
        start = _START.pack(size >> 8, size & 0xFF, frames.DATA, 0, stream.number, 0, length)
        self._output += (start, message)
        return True

    def _begin(self, stream: StreamState) -> None:
        """Send the head of a response, if it was not sent."""
        if not stream.head_sent:
            stream.head_sent = True
            self.block(stream.number, RESPONSE_HEAD, ends=False)

    def _wait(self, stream: StreamState, message: bytes) -> None:
        """Queue a message on its stream, and send what the windows admit."""
        stream.waiting.append(memoryview(prefix(len(message))))
        self.waiting_chunks += 1
        if message:
            stream.waiting.append(memoryview(message))
            self.waiting_chunks += 1
        self.waiting_bytes += PREFIX_BYTES + len(message)
        if stream.number not in self._waiting:
            self._waiting[stream.number] = stream
            if self._widest is None:
                self._widest = Widest()
            self._widest.put(stream, self._waiting)
        while stream.waiting and self._send_chunk(stream):
            pass

    def _send_chunk(self, stream: StreamState) -> bool:
        """Send one frame of what waits on a stream, and say whether the windows admitted any."""
        window = stream.credit + self._initial_window
        most = min(frames.DEFAULT_FRAME_SIZE, self.window, window)
        if most <= 0:
            return False
        waiting = stream.waiting
        count, before = len(waiting), kept(waiting[0])
        chunk = stream.next_chunk(most)
        taken = count - len(waiting)
        self.waiting_chunks -= taken
        self.waiting_bytes -= before if taken else before - kept(waiting[0])
        size = len(chunk)
        self.window -= size
        stream.credit -= size
        self._output += (frames.head(size, frames.DATA, 0, stream.number), chunk)
        if not stream.waiting:
            stream.drained += 1
            del self._waiting[stream.number]
        return True

    def push(self) -> StreamState | None:
        """Send one frame of the stream with the widest window; return that stream, or None."""
        if self.window <= 0 or self._widest is None:
            return None
        stream = self._widest.top(self._waiting)
        if stream is None or not self._send_chunk(stream):
            return None
        return stream

    def waiting(self) -> dict[int, int]:
        """Return the streams on which something waits, each with how often it was drained."""
        if not self._waiting:  # as nearly always
            return {}
        return {number: stream.drained for number, stream in self._waiting.items()}

    def can_push(self) -> bool:
        """Say whether the windows admit some of what waits."""
        if self.window <= 0 or self._widest is None:
            return False
        stream = self._widest.top(self._waiting)
        return stream is not None and stream.credit + self._initial_window > 0

    def forget(self, stream: StreamState) -> None:
        """Drop what waits on a stream that is over."""
        if self._waiting.take(stream.number) is not None:
            self.waiting_bytes -= sum(map(kept, stream.waiting))
            self.waiting_chunks -= len(stream.waiting)
            stream.waiting.clear()

    def closed(self) -> None:
        """Release the memory that a stream that is over needed."""
        if self._widened is not None:
            self._widened.trim(self._streams)
        if self._widest is not None:
            self._widest.trim(self._waiting)

    # --- windows --------------------------------------------------------------------------------

    def widen(self, increment: int) -> None:
        """Apply a WINDOW_UPDATE of the connection.

        Raises:
            Http2Error: the increment is 0, or the window exceeds its largest size.
        """
        self.window += increment
        if not increment or self.window > frames.MAX_WINDOW:
            code = frames.ErrorCode.FLOW_CONTROL_ERROR
            raise Http2Error(
                "the connection's window cannot change by that much",
                code=code if increment else frames.ErrorCode.PROTOCOL_ERROR,
            )

    def widen_stream(self, stream: StreamState, increment: int) -> None:
        """Apply a WINDOW_UPDATE of a stream.

        Raises:
            Http2StreamError: the increment is 0, or the window exceeds its largest size.
        """
        if not increment:
            raise Http2StreamError("a window grows by 0", code=frames.ErrorCode.PROTOCOL_ERROR)
        stream.credit += increment
        if stream.credit + self._initial_window > frames.MAX_WINDOW:
            raise Http2StreamError(
                "a window exceeds 2**31-1 bytes", code=frames.ErrorCode.FLOW_CONTROL_ERROR
            )
        if self._widened is None:
            self._widened = Widest()
        self._widened.put(stream, self._streams)
        if stream.number in self._waiting and self._widest is not None:
            self._widest.put(stream, self._waiting)

    def set_initial_window(self, value: int) -> None:
        """Apply SETTINGS_INITIAL_WINDOW_SIZE: every stream's window changes by the difference.

        Raises:
            Http2Error: a window exceeds its largest size (RFC 9113, section 6.9.2).
        """
        if value > frames.MAX_WINDOW:
            raise Http2Error("a window is too large", code=frames.ErrorCode.FLOW_CONTROL_ERROR)
        if self._widened is not None:
            # Only a WINDOW_UPDATE makes a window wider than the initial one.
            widest = self._widened.top(self._streams)
            if widest is not None and widest.credit + value > frames.MAX_WINDOW:
                raise Http2Error(
                    "a window exceeds 2**31-1 bytes", code=frames.ErrorCode.FLOW_CONTROL_ERROR
                )
        self._initial_window = value
