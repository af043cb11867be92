"""As little of an HTTP/2 client as gRPC over a Unix socket needs, so that it costs next to nothing.

Header blocks are sent ready-made and the server's are never decoded; the server is granted every
window there is, its own windows are kept to; settings and pings are acknowledged. What is left of
a response is handed on message by message. Invariant: nothing blocks once it is connected.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

METHOD = b"/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
FRAME = 16_384
WINDOW = 65_535
EVERYTHING = 2**31 - 1
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW_SIZE = 4
REFUSED_STREAM = 7


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    return head + payload


def _header(name: bytes, value: bytes) -> bytes:
    """A header that no table remembers; ``name``: an index of the static table, or a text."""
    return name + bytes((len(value),)) + value


GREETING = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(SETTINGS, 0, 0, INITIAL_WINDOW_SIZE.to_bytes(2, "big") + EVERYTHING.to_bytes(4, "big"))
    + frame(WINDOW_UPDATE, 0, 0, (EVERYTHING - WINDOW).to_bytes(4, "big"))
)
CALL = (
    b"\x83\x86"  # :method POST, :scheme http
    + _header(b"\x04", METHOD)
    + _header(b"\x01", b"localhost")
    + _header(b"\x0f\x10", b"application/grpc")  # content-type
    + _header(b"\x00\x02te", b"trailers")
)


class Stream:
    """One call: what waits for the server's window, and the part of a message that has come."""

    __slots__ = ("came", "index", "number", "waiting", "window")

    def __init__(self, index: int, number: int, window: int) -> None:
        self.index = index
        self.number = number
        self.window = window
        self.waiting = b""
        self.came = b""

    def write(self, message: bytes) -> None:
        """Send a message at the next :meth:`Connection.pump`."""
        self.waiting += b"\0" + len(message).to_bytes(4, "big") + message

    def take(self, part: bytes) -> list[bytes]:
        """The messages that are whole with this part."""
        data = self.came + part if self.came else part
        whole, at = [], 0
        while len(data) - at >= 5:
            end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
            if len(data) < end:
                break
            whole.append(data[at + 5 : end])
            at = end
        self.came = data[at:]
        return whole


class Connection:
    """One connection with its calls; ``began`` (ns) is when it dialled.

    ``on_message`` is told the index of the call, the message, and when it came (ns). ``failure``
    says what ended the connection or a call, ``refused`` how often a call had to be made again.
    """

    def __init__(
        self,
        path: str,
        first_messages: Sequence[bytes],
        on_message: Callable[[int, bytes, int], None],
    ) -> None:
        self.failure = ""
        self.refused = 0
        self.streams: list[Stream] = []
        self._calls: dict[int, Stream] = {}
        self._next = 1
        self._first = first_messages
        self._on_message = on_message
        self._out = bytearray(GREETING)
        self._rest = b""
        self._window = self._initial = WINDOW
        for index in range(len(first_messages)):
            self._call(index)
        self.began = time.time_ns()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(path)  # waits where the backlog is full
        self.socket.settimeout(0)

    def pump(self) -> bool:
        """Send what windows and kernel take; False where the kernel did not take everything."""
        for stream in self.streams:
            while stream.waiting and (room := min(FRAME, self._window, stream.window)) > 0:
                part, stream.waiting = stream.waiting[:room], stream.waiting[room:]
                self._out += frame(DATA, 0, stream.number, part)
                self._window -= len(part)
                stream.window -= len(part)
        try:
            while self._out:
                del self._out[: self.socket.send(self._out)]
        except BlockingIOError:
            return False
        except OSError as error:
            self.failure = f"{error.strerror}"
        return True

    def read(self) -> None:
        """Take what has come."""
        try:
            data = self.socket.recv(262_144)
        except BlockingIOError:
            return
        except OSError as error:
            self.failure = f"{error.strerror}"
            return
        if not data:
            self.failure = self.failure or "connection closed"
            return
        now = time.time_ns()
        data = self._rest + data if self._rest else data
        at = 0
        while len(data) - at >= 9:
            end = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if len(data) < end:
                break
            number = int.from_bytes(data[at + 5 : at + 9], "big")
            self._frame(data[at + 3], data[at + 4], number, data[at + 9 : end], now)
            at = end
        self._rest = data[at:]

    def _frame(self, kind: int, flags: int, number: int, payload: bytes, now: int) -> None:
        stream = self._calls.get(number)
        if kind == WINDOW_UPDATE:
            self._granted(stream, int.from_bytes(payload, "big"))
        elif kind == SETTINGS and not flags & ACK:
            self._set(payload)
            self._out += frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        elif kind == GOAWAY:
            self.failure = "connection going away"
        elif stream is not None and kind == RESET:
            self._reset(stream, int.from_bytes(payload, "big"))
        elif stream is not None and kind in (DATA, HEADERS):
            for message in stream.take(payload) if kind == DATA else ():
                self._on_message(stream.index, message, now)
            if flags & END_STREAM:
                said = "".join(filter(str.isprintable, map(chr, payload)))
                self.failure = f"stream ended: {said[-80:]}"

    def _granted(self, stream: Stream | None, more: int) -> None:
        if stream is None:
            self._window += more
        else:
            stream.window += more

    def _set(self, settings: bytes) -> None:
        for at in range(0, len(settings), 6):
            if int.from_bytes(settings[at : at + 2], "big") == INITIAL_WINDOW_SIZE:
                initial = int.from_bytes(settings[at + 2 : at + 6], "big")
                for stream in self.streams:
                    stream.window += initial - self._initial
                self._initial = initial

    def _reset(self, stream: Stream, code: int) -> None:
        """A call that the server refused before it looked at it is made again, as by gRPC."""
        if code != REFUSED_STREAM:
            self.failure = self.failure or f"stream reset with code {code}"
            return
        self.refused += 1
        del self._calls[stream.number]
        self._call(stream.index)

    def _call(self, index: int) -> None:
        stream = Stream(index, self._next, self._initial)
        self._next += 2
        self.streams[index : index + 1] = [stream]
        self._calls[stream.number] = stream
        stream.write(self._first[index])
        self._out += frame(HEADERS, END_HEADERS, stream.number, CALL)
