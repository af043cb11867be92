"""A TCP proxy that does to connections what networks do: delay, cut, reset, blackhole, corrupt."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CHUNK = 65536


class Proxy:
    """Forwards ``127.0.0.1:port`` to the target; the attributes say what it does meanwhile.

    Attributes:
        delay: seconds by which each chunk is late.
        blackhole: nothing is forwarded, nothing is refused.
        refuse: new connections are reset at once.
        corrupt: one byte of each chunk to the client is changed.
        cut_after: each connection ends after so many bytes to the client.
        largest: bytes of the largest chunk to the target so far; it is counted when it arrives
            here, before any delay.
        unanswered_from: a chunk to the target that is larger is forwarded, and nothing comes back
            to any client from then on.
    """

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._open = asyncio.Event()
        self._open.set()
        self._answers = asyncio.Event()
        self._answers.set()
        self.port = 0
        self.delay = 0.0
        self.refuse = False
        self.corrupt = False
        self.cut_after: int | None = None
        self.largest = 0
        self.unanswered_from: int | None = None

    @property
    def blackhole(self) -> bool:
        return not self._open.is_set()

    @blackhole.setter
    def blackhole(self, value: bool) -> None:
        (self._open.clear if value else self._open.set)()

    def reset(self) -> None:
        """Reset every open connection (RST)."""
        for writer in list(self._writers):
            _reset(writer)

    def heal(self) -> None:
        """Forward as if nothing had been."""
        self.delay, self.refuse, self.corrupt, self.cut_after = 0.0, False, False, None
        self.unanswered_from = None
        self.blackhole = False
        self._answers.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._server.close()
            self._open.set()
            self._answers.set()
            self.reset()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if self.refuse:
                _reset(writer)
                return
            await self._open.wait()
            there, out = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers.add(out)
            try:
                await asyncio.gather(
                    self._pump(reader, out, to_client=False),
                    self._pump(there, writer, to_client=True),
                )
            finally:
                self._writers.discard(out)
                out.close()
        except OSError:
            pass  # the target is down, or somebody reset: what a proxy is for
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to_client: bool
    ) -> None:
        passed = 0
        while chunk := await reader.read(_CHUNK):
            if not to_client:
                self.largest = max(self.largest, len(chunk))
                if self.unanswered_from is not None and len(chunk) > self.unanswered_from:
                    self._answers.clear()
            else:
                await self._answers.wait()
            await self._open.wait()
            if self.delay:
                await asyncio.sleep(self.delay)
            if to_client and self.corrupt:
                middle = len(chunk) // 2
                chunk = chunk[:middle] + bytes([chunk[middle] ^ 0x55]) + chunk[middle + 1 :]
            if to_client and self.cut_after is not None and passed + len(chunk) > self.cut_after:
                writer.write(chunk[: self.cut_after - passed])
                _reset(writer)
                return
            writer.write(chunk)
            passed += len(chunk)
            await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    found = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
