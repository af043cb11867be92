"""Clients that attack a secret socket: each sends what it can to hold up everybody else.

Every attack is a function of a connected :class:`Attacker`; it sends, and reads only what it says.
``ATTACKS`` has all of them by name. They speak HTTP/2 by hand (RFC 9113), because no real client
would.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import sys
import termios
import time
from typing import TYPE_CHECKING

from envoy.service.discovery.v3 import discovery_pb2
from grpc_reflection.v1alpha import reflection_pb2

from tests.support.door_client import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    RST,
    SETTINGS,
    frame,
    headers,
)
from tests.support.raw_client import DELTA, STREAM, discovery, message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WINDOW_UPDATE, CONTINUATION, PRIORITY = 8, 9, 2
PADDED, ACK = 8, 1
REFLECTION = b"/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0)
_PIECE = 32 * 1024


class Attacker:
    """One connection of an attack."""

    def __init__(self, path: Path | str, *, seconds: float = 30.0) -> None:
        self.path = path
        self.read = 0
        self._until = time.monotonic() + seconds
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(5)
        self._connect()
        self.send(GREETING)

    def _connect(self) -> None:
        """Go on trying while the queue of the socket is full, as after an attack."""
        while True:
            try:
                self._socket.connect(str(self.path))
            except BlockingIOError:
                if time.monotonic() > self._until:
                    raise
                time.sleep(0.005)
            else:
                return

    def send(self, data: bytes, *, reads: bool = True) -> None:
        """Send, and read meanwhile what comes (or not, and stop where nothing is taken)."""
        self._socket.setblocking(False)  # noqa: FBT003  the socket's own method
        view = memoryview(data)
        while view and time.monotonic() < self._until:
            ready, writable, _ = select.select(
                [self._socket] if reads else [], [self._socket], [], 0.5
            )
            if ready:
                self.drain()
            if writable:
                view = view[self._socket.send(view[:_PIECE]) :]
            elif not reads:
                return

    def drain(self, seconds: float = 0.0) -> None:
        """Read what comes, for so long."""
        end = time.monotonic() + seconds
        while True:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._socket], [], [], left)[0]:
                return
            chunk = self._socket.recv(1 << 18)
            if not chunk:
                raise ConnectionResetError
            self.read += len(chunk)

    def close(self) -> None:
        """Go."""
        self._socket.close()


def numbers(count: int, first: int = 0) -> range:
    """Numbers of streams."""
    return range(2 * first + 1, 2 * (first + count) + 1, 2)


def opened(path: bytes, streams: range, data: bytes = b"", *, ends: bool = False) -> bytes:
    """Requests on so many streams."""
    block = headers(path)
    flags = END_STREAM if ends else 0
    body = message(data) if data else b""
    return b"".join(
        frame(HEADERS, END_HEADERS, number, block)
        + (frame(DATA, flags, number, body) if data or ends else b"")
        for number in streams
    )


def window(value: int) -> bytes:
    """SETTINGS_INITIAL_WINDOW_SIZE."""
    return b"\0\x04" + value.to_bytes(4, "big")


def settings_over_streams(at: Attacker) -> None:
    at.send(opened(STREAM, numbers(2_000)))
    at.send(frame(SETTINGS, 0, 0, b"".join(window(65_535 + n % 2) for n in range(2_700))) * 20)
    at.drain(0.5)


def windows_of_one_byte(at: Attacker) -> None:
    at.send(frame(SETTINGS, 0, 0, window(0)))
    at.send(opened(STREAM, numbers(2_000), discovery("default")[5:]))
    at.drain(1.0)
    at.send(frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 15_000)
    at.send(b"".join(frame(SETTINGS, 0, 0, window(n)) for n in range(1, 200)))
    at.drain(0.5)


def many_streams_and_gone(at: Attacker) -> None:
    at.send(opened(STREAM, numbers(2_000), discovery("default", "ROOTCA")[5:]))
    at.drain(1.0)


def rapid_reset(at: Attacker) -> None:
    block = headers(STREAM)
    at.send(
        b"".join(
            frame(HEADERS, END_HEADERS, number, block) + frame(RST, 0, number, bytes(4))
            for number in numbers(9_000)
        )
    )
    at.drain(0.5)


def tiny_messages(at: Attacker) -> None:
    at.send(opened(DELTA, numbers(100)))
    body = message(b"\x2a\x00") * 2_300
    for number in numbers(100):
        at.send(frame(DATA, 0, number, body))
    at.drain(0.5)


def empty_messages_in_one_stream(at: Attacker) -> None:
    at.send(opened(STREAM, numbers(1)))
    for _ in range(60):
        at.send(frame(DATA, 0, 1, message(b"") * 3_200))
    at.drain(0.5)


def pings_unread(at: Attacker) -> None:
    at.send(frame(PING, 0, 0, bytes(8)) * 15_000, reads=False)


def refused_calls(at: Attacker) -> None:
    at.send(opened(b"/no/such", numbers(10_000), b"x", ends=True))
    at.drain(0.5)


def refused_requests(at: Attacker) -> None:
    at.send(opened(STREAM, numbers(2_000), b"\xff\xff\xff"))
    at.drain(0.5)


def reflection_behind_shut_windows(at: Attacker) -> None:
    at.send(frame(SETTINGS, 0, 0, window(0)))
    ask = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="envoy.service.secret.v3.SecretDiscoveryService"
    ).SerializeToString()
    at.send(opened(REFLECTION, numbers(2_000), ask))
    at.drain(2.0)


def _readable(one: socket.socket) -> int:
    """How many bytes the client could read."""
    return int.from_bytes(fcntl.ioctl(one, termios.FIONREAD, bytes(4)), sys.byteorder)


def connections_unread(at: Attacker) -> None:
    """Fill the sockets of a thousand connections: what the kernel keeps for a sender is its own."""
    ask = reflection_pb2.ServerReflectionRequest(
        file_containing_symbol="envoy.service.secret.v3.SecretDiscoveryService"
    ).SerializeToString()
    wider = frame(WINDOW_UPDATE, 0, 0, (1 << 30).to_bytes(4, "big"))
    asked = GREETING + wider + opened(REFLECTION, numbers(7), ask)
    made: list[socket.socket] = []
    with contextlib.ExitStack() as stack:
        for _ in range(1_200):
            one = stack.enter_context(socket.socket(socket.AF_UNIX))
            one.settimeout(5)
            with contextlib.suppress(OSError):
                one.connect(str(at.path))
                one.sendall(asked)
                made.append(one)
        before, there = -1, 0
        while there > before:
            time.sleep(3)
            before, there = there, sum(map(_readable, made))


def names(at: Attacker) -> None:
    asked = discovery_pb2.DiscoveryRequest(
        resource_names=[f"{number:05}" + "n" * 200 for number in range(2_000)]
    ).SerializeToString()
    at.send(opened(STREAM, numbers(40)))
    for number in numbers(40):
        body = message(asked)
        for start in range(0, len(body), 16_384):
            at.send(frame(DATA, 0, number, body[start : start + 16_384]))
    at.drain(1.0)


def header_table(at: Attacker) -> None:
    block = headers(b"/no/such")
    at.send(
        b"".join(
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                number,
                block + b"\x40\x06%06d\x7e" % number + b"v" * 126,
            )
            for number in numbers(5_000)
        )
    )
    at.drain(0.5)


def fields_by_index(at: Attacker) -> None:
    block = headers(b"/no/such")
    first = block + b"\x40\x01a\x01b" + b"\xbe" * 400
    later = block + b"\xbe" * 450
    at.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, first))
    at.send(b"".join(frame(HEADERS, END_HEADERS | END_STREAM, n, later) for n in numbers(1_000, 1)))
    at.drain(0.5)


def frames_of_nothing(at: Attacker) -> None:
    at.send(opened(STREAM, numbers(1)))
    at.send(frame(DATA, 0, 1) * 10_000)
    at.send(frame(PRIORITY, 0, 1, bytes(5)) * 5_000)
    at.send(frame(HEADERS, 0, 3, headers(STREAM)) + frame(CONTINUATION, 0, 3) * 10_000)


def reconnecting(at: Attacker) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError):
            again = Attacker(at.path, seconds=5)
            again.send(opened(STREAM, numbers(5), discovery("default")[5:]))
            again.close()


def _games() -> Iterator[bytes]:
    """What RFC 9113 forbids, bounds or leaves to be ignored: for a connection each."""
    block = headers(STREAM)
    opening = frame(HEADERS, END_HEADERS, 1, block)
    fields = b"\x00\x04name\x7f\xff\x00" + b"v" * 254
    yield frame(HEADERS, 0, 1, block) + frame(CONTINUATION, 0, 1, fields * 60) * 200
    yield opening + frame(DATA, PADDED, 1, b"\xff" + bytes(255)) * 8_000
    yield opening + frame(DATA, PADDED, 1, b"\xff")
    yield opening + frame(HEADERS, END_HEADERS | END_STREAM, 1, fields * 60) * 200
    yield opening + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 3
    yield opening + frame(WINDOW_UPDATE, 0, 1, bytes(4)) * 3
    yield frame(SETTINGS, ACK, 0) * 20_000
    yield frame(SETTINGS, 0, 0) * 20_000
    yield frame(PRIORITY, 0, 1, b"\0\0\0\1\0") * 10_000
    yield b"".join(frame(PRIORITY, 0, n, b"\0\0\0\0\0") for n in numbers(20_000, 1_000))
    yield frame(0xEE, 0xFF, 7, bytes(16_000)) * 60
    yield frame(7, 0, 0, bytes(8) + b"x" * 2_000) * 400  # GOAWAY, again and again
    yield frame(5, END_HEADERS, 1, bytes(4) + block)  # PUSH_PROMISE
    yield b"".join(frame(RST, 0, number, bytes(4)) for number in numbers(9_000))
    yield frame(PING, 0, 0, bytes(8)) * 20_000
    yield opening * 2 + frame(RST, 0, 1, bytes(4)) + frame(DATA, 0, 1, b"x") * 5_000
    yield frame(SETTINGS, 0, 0, b"\0\1\xff\xff\xff\xff\0\5\0\xff\xff\xff" * 1_000)


def frame_games(at: Attacker) -> None:
    for game in _games():
        with contextlib.suppress(OSError), attacker(at.path, seconds=2) as again:
            again.send(game)
            again.drain(0.02)


def header_games(at: Attacker) -> None:
    """Sizes of the table up and down, long Huffman strings, integers without end (RFC 7541)."""
    block = headers(b"/no/such")
    resized = b"\x20\x3f\xe1\x1f" + block
    at.send(b"".join(frame(HEADERS, 5, n, resized) for n in numbers(3_000)))
    at.drain(0.1)
    long = block + b"\x00\x01a\xff\xe0\x3c" + b"\x1f" * 7_775  # 12,440 letters in Huffman's code
    endless = block + b"\x7f" + b"\x80" * 9_000
    for made in (long, endless):
        with contextlib.suppress(OSError), attacker(at.path, seconds=2) as again:
            again.send(b"".join(frame(HEADERS, 5, n, made) for n in numbers(60)))
            again.drain(0.1)


ATTACKS: dict[str, Callable[[Attacker], None]] = {
    attack.__name__: attack
    for attack in (
        settings_over_streams,
        windows_of_one_byte,
        many_streams_and_gone,
        rapid_reset,
        tiny_messages,
        empty_messages_in_one_stream,
        pings_unread,
        refused_calls,
        refused_requests,
        reflection_behind_shut_windows,
        connections_unread,
        names,
        header_table,
        fields_by_index,
        frames_of_nothing,
        reconnecting,
        frame_games,
        header_games,
    )
}


@contextlib.contextmanager
def attacker(path: Path | str, *, seconds: float = 30.0) -> Iterator[Attacker]:
    """A connection of an attack."""
    at = Attacker(path, seconds=seconds)
    try:
        yield at
    finally:
        at.close()


def attack(name: str, path: Path | str) -> None:
    """Run one attack; a server that ends it is not a failure."""
    with contextlib.suppress(OSError), attacker(path) as at:
        ATTACKS[name](at)
