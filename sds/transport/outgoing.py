"""What one connection sends: frames in order, within the client's windows.

Owns the output and the window of the connection. Invariant: DATA never exceeds the connection's
window, the stream's or the frame size that every client takes (a larger one, which a client may
offer, would gain nothing); what does not fit waits in the stream's state and loses its place to
nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.transport import frames
from sds.transport.headers import resized_table, response_head
from sds.transport.messages import PREFIX_BYTES, prefix

if TYPE_CHECKING:
    from sds.transport.flow import StreamState


class Outgoing:
    """See the module.

    Attributes:
        window: bytes that the client still takes on all streams together.
        table_changed: the client changed the size of its header table, which the next header
            block must answer.
    """

    __slots__ = ("_output", "table_changed", "window")

    def __init__(self) -> None:
        """Nothing is queued; the client's settings are those of the start."""
        self._output: list[bytes | memoryview] = []
        self.window = frames.DEFAULT_WINDOW
        self.table_changed = False

    def take(self) -> list[bytes | memoryview]:
        """What is to be written now, in order."""
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

    def message(self, stream: StreamState, message: bytes) -> bool:
        """Send one gRPC message, and the head before the first; whether all of it is queued."""
        if not stream.head_sent:
            stream.head_sent = True
            self.block(stream.number, response_head(), ends=False)
        size = PREFIX_BYTES + len(message)
        if stream.waiting or size > min(frames.DEFAULT_FRAME_SIZE, self.window, stream.send_window):
            stream.waiting.append(memoryview(prefix(len(message))))
            if message:
                stream.waiting.append(memoryview(message))
            return self.push(stream)
        # The usual case: one frame, and the message itself is not copied.
        self.window -= size
        stream.send_window -= size
        start = frames.head(size, frames.DATA, 0, stream.number) + prefix(len(message))
        self._output += (start, message)
        return True

    def push(self, stream: StreamState) -> bool:
        """Queue what the windows admit of what waits; whether nothing waits any more."""
        while stream.waiting:
            most = min(frames.DEFAULT_FRAME_SIZE, self.window, stream.send_window)
            if most <= 0:
                return False
            chunk = stream.next_chunk(most)
            self.window -= len(chunk)
            stream.send_window -= len(chunk)
            start = frames.head(len(chunk), frames.DATA, 0, stream.number)
            self._output += (start, chunk)
        stream.drained += 1
        return True
