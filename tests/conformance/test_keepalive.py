"""Clients that ask whether the agent still answers, as an Envoy of ``sds bootstrap`` does."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from sds.agent.grpc_fallback import PING_SECONDS
from tests.support.door_client import ACK, PING, SETTINGS, frame
from tests.support.raw_client import STREAM, connected, discovery
from tests.support.serving import serving, svid

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("transport")
PINGS = 6
"""More than a server of gRPC's core permits by default to a client that gets no data meanwhile."""


def ping_again_and_again(path: Path, *, with_stream: bool) -> None:
    with connected(path) as client:
        if with_stream:
            client.call(STREAM, discovery("default"))
            client.read_until(b"-----BEGIN CERTIFICATE-----")
        else:
            client.read_until(frame(SETTINGS, ACK, 0))
        for number in range(PINGS):
            mark = number.to_bytes(8, "big")
            client.connection.sendall(frame(PING, 0, 0, mark))
            client.read_until(frame(PING, ACK, 0, mark))
            time.sleep(2 * PING_SECONDS)


@pytest.mark.parametrize("with_stream", [True, False])
async def test_pings_end_no_connection(tmp_path: Path, *, with_stream: bool) -> None:
    async with serving(tmp_path) as at:
        at.store.put_svid(svid())
        await asyncio.to_thread(ping_again_and_again, at.socket, with_stream=with_stream)
