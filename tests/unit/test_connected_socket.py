"""Output that nobody reads is counted as the memory that it takes."""

from __future__ import annotations

import asyncio
import socket
import tracemalloc

import pytest

from sds.transport.connected_socket import ConnectedSocket
from sds.transport.frames import PING, frame


class Nobody:
    """Uses the socket, and does nothing with it."""

    def readable(self) -> None:
        raise AssertionError

    def drained(self) -> None:
        raise AssertionError

    def recount(self) -> None:
        pass

    def left_unread(self, _count: int) -> None:
        """Count nothing."""

    def lost(self) -> None:
        pass


@pytest.mark.parametrize("size", [8, 10_000])
async def test_pieces_that_wait_count_with_their_objects(size: int) -> None:
    """17 bytes that answer a PING take fifteen times as much."""
    ours, theirs = socket.socketpair()
    with theirs:
        endpoint = ConnectedSocket(ours, asyncio.get_running_loop(), Nobody(), bytearray(16))
        while not endpoint.unsent:
            endpoint.write([bytes(65_536)])
        before = endpoint.held
        tracemalloc.start()
        try:
            for number in range(2_000):
                endpoint.write([frame(PING, 1, 0, number.to_bytes(size, "big"))])
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert 0.8 * taken <= endpoint.held - before <= 2 * taken
        endpoint.abort()
        assert endpoint.held == 0
        await asyncio.sleep(0)
