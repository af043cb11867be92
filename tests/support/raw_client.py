"""A gRPC client of a secret socket that decides itself when it reads and what windows it opens.

It speaks just enough HTTP/2 (RFC 9113) and gRPC to misbehave: real clients cannot be told to.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import TYPE_CHECKING

from envoy.service.discovery.v3 import discovery_pb2

from tests.support.door_client import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    SETTINGS,
    frame,
    headers,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STREAM = b"/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
DELTA = b"/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
FETCH = b"/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets"
_INITIAL_WINDOW = 4


def message(payload: bytes) -> bytes:
    """A gRPC message, not compressed."""
    return b"\0" + struct.pack(">I", len(payload)) + payload


def discovery(*names: str) -> bytes:
    """A DiscoveryRequest for these names."""
    encoded: bytes = discovery_pb2.DiscoveryRequest(resource_names=names).SerializeToString()
    return message(encoded)


class RawClient:
    """One connection; ``window`` is what the server may send on each stream."""

    def __init__(self, connection: socket.socket, *, window: int = 2**31 - 1) -> None:
        self.connection = connection
        self._next = 1
        settings = struct.pack(">HI", _INITIAL_WINDOW, window)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, settings))
        connection.sendall(frame(8, 0, 0, struct.pack(">I", 2**30)))

    def call(self, path: bytes, data: bytes, *, ends: bool = False, timeout: str = "") -> int:
        """Open a stream; returns its number."""
        number, self._next = self._next, self._next + 2
        block = headers(path)
        if timeout:
            block += b"\0\x0cgrpc-timeout" + bytes([len(timeout)]) + timeout.encode()
        self.connection.sendall(
            frame(HEADERS, END_HEADERS, number, block)
            + frame(DATA, END_STREAM if ends else 0, number, data)
        )
        return number

    def send(self, number: int, data: bytes) -> None:
        """Another message on a stream."""
        self.connection.sendall(frame(DATA, 0, number, data))

    def read_until(self, wanted: bytes) -> bytes:
        """Read until these bytes came; all that was read."""
        return self.read_times(wanted, 1)

    def read_times(self, wanted: bytes, times: int) -> bytes:
        """Read until these bytes came so many times; all that was read."""
        seen = b""
        while seen.count(wanted) < times:
            chunk = self.connection.recv(65536)
            assert chunk, seen[-300:]
            seen += chunk
        return seen


@contextlib.contextmanager
def connected(path: Path, *, window: int = 2**31 - 1) -> Iterator[RawClient]:
    """A client on this socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(path))
        yield RawClient(connection, window=window)
