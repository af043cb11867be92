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
ENDS = {RESET: "stream reset", GOAWAY: "connection going away", HEADERS: "stream ended"}


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

    __slots__ = ("came", "number", "waiting", "window")

    def __init__(self, number: int) -> None:
        self.number = number
        self.window = WINDOW
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
    says what ended the connection or a call.
    """

    def __init__(
        self,
        path: str,
        first_messages: Sequence[bytes],
        on_message: Callable[[int, bytes, int], None],
    ) -> None:
        self.failure = ""
        self.streams = [Stream(2 * index + 1) for index in range(len(first_messages))]
        self._on_message = on_message
        self._out = bytearray(GREETING)
        self._rest = b""
        self._window = self._initial = WINDOW
        for stream, message in zip(self.streams, first_messages, strict=True):
            stream.write(message)
            self._out += frame(HEADERS, END_HEADERS, stream.number, CALL)
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
        index = number >> 1 if number else -1
        if kind == DATA:
            for message in self.streams[index].take(payload):
                self._on_message(index, message, now)
        elif kind == WINDOW_UPDATE:
            added = int.from_bytes(payload, "big")
            if number:
                self.streams[index].window += added
            else:
                self._window += added
        elif kind == SETTINGS and not flags & ACK:
            for at in range(0, len(payload), 6):
                if int.from_bytes(payload[at : at + 2], "big") == INITIAL_WINDOW_SIZE:
                    initial = int.from_bytes(payload[at + 2 : at + 6], "big")
                    for stream in self.streams:
                        stream.window += initial - self._initial
                    self._initial = initial
            self._out += frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._out += frame(PING, ACK, 0, payload)
        if kind in (RESET, GOAWAY) or (kind in (DATA, HEADERS) and flags & END_STREAM):
            self.failure = ENDS.get(kind, "stream ended")
