"""One HTTP/2 connection over mTLS that stays open, and requests on it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events

from sds.pki import certificate_pem
from tests.support.raw_http2 import tls

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sds.bootstrap.plan import Endpoint
    from sds.secrets.store import Svid


@dataclass(kw_only=True)
class KeptHttp2:
    """A client with one connection, which is never made anew."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    http2: h2.connection.H2Connection

    async def ask(self) -> tuple[int, str]:
        """The status of a GET, and the body.

        Raises:
            EOFError: the connection is over.
        """
        stream = self.http2.get_next_available_stream_id()
        head = [(":method", "GET"), (":scheme", "https"), (":authority", "h"), (":path", "/")]
        self.http2.send_headers(stream, head, end_stream=True)
        status, body = 0, b""
        while True:
            self.writer.write(self.http2.data_to_send())
            data = await self.reader.read(65_536)
            if not data:
                raise EOFError("the connection is over")
            for event in self.http2.receive_data(data):
                match event:
                    case h2.events.ResponseReceived(stream_id=number) if number == stream:
                        status = int(dict(event.headers or [])[b":status"])
                    case h2.events.DataReceived(stream_id=number) if number == stream:
                        body += event.data or b""
                    case h2.events.StreamEnded(stream_id=number) if number == stream:
                        return status, body.decode()


@contextlib.asynccontextmanager
async def kept_http2(to: Endpoint, svid: Svid) -> AsyncIterator[KeptHttp2]:
    """Connect as this workload; the server's certificate is not looked at."""
    context = tls()
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        Path(file.name).write_bytes(certificate_pem(svid.chain) + svid.private_key.reveal())
        context.load_cert_chain(file.name)
    reader, writer = await asyncio.open_connection(to.host, to.port, ssl=context)
    spoken = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    assert spoken == "h2", spoken
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http2.initiate_connection()
    try:
        yield KeptHttp2(reader=reader, writer=writer, http2=http2)
    finally:
        writer.close()
        with contextlib.suppress(ssl.SSLError, OSError):
            await writer.wait_closed()
