"""HTTP/2 over TLS by hand, for callers that break off in the middle of a message."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events

from sds.exchange.wire import EXCHANGE
from tests.support.hostile_stranger import ADDRESS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def tls() -> ssl.SSLContext:
    """TLS that trusts everybody, and speaks HTTP/2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


@dataclass
class RawConnection:
    """One connection; nothing is sent that the test does not ask for."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http: h2.connection.H2Connection = field(
        default_factory=lambda: h2.connection.H2Connection(
            h2.config.H2Configuration(header_encoding="utf-8")
        )
    )
    ended: set[int] = field(default_factory=set)
    closed: bool = False

    def flush(self) -> None:
        self.writer.write(self.http.data_to_send())

    def call(self, path: str = EXCHANGE) -> int:
        """Open a call; its stream."""
        stream = self.http.get_next_available_stream_id()
        self.http.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "https"),
                (":path", path),
                (":authority", "localhost"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ],
        )
        self.flush()
        return stream

    def announce(self, stream: int, size: int) -> None:
        """Begin a message of that many bytes."""
        self.http.send_data(stream, b"\0" + struct.pack(">I", size))
        self.flush()

    async def push(self, streams: dict[int, int], *, seconds: float) -> int:
        """Send so many bytes on each stream, as fast as windows let us; bytes that were sent."""
        sent = 0
        with contextlib.suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(seconds):
                while any(left for one, left in streams.items() if one not in self.ended):
                    went = 0
                    for stream, left in streams.items():
                        if stream in self.ended or not left:
                            continue
                        window = self.http.local_flow_control_window(stream)
                        size = min(window, left, self.http.max_outbound_frame_size)
                        if size > 0:
                            self.http.send_data(stream, b"x" * size)
                            streams[stream] -= size
                            went += size
                    self.flush()
                    await self.writer.drain()
                    sent += went
                    if not went and not await self.receive():
                        break
        return sent

    async def receive(self) -> bool:
        """Take what came; False where the connection is over."""
        data = await self.reader.read(65536)
        if not data:
            self.closed = True
            return False
        for event in self.http.receive_data(data):
            if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                assert event.stream_id is not None
                self.ended.add(event.stream_id)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.closed = True
        self.flush()
        return not self.closed


@contextlib.asynccontextmanager
async def raw_connection(port: int) -> AsyncIterator[RawConnection]:
    """From a stranger's address: streams of one address share turns to be read."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls(), local_addr=(ADDRESS, 0)
    )
    connection = RawConnection(reader, writer)
    connection.http.initiate_connection()
    connection.flush()
    try:
        yield connection
    finally:
        writer.transport.abort()
