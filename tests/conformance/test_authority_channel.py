"""An authority's channel to an address where nobody answers."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sds.authority.channel import verified_channel
from tests.support.certificates import ca_wish, self_signed

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a listener with a full queue: the kernel drops what would connect to it."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        host, port = listener.getsockname()
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex((host, port))
        yield f"{host}:{port}"


async def test_a_connection_that_nobody_answers_is_given_up_long_before_grpcs_20_seconds(
    silent: str,
) -> None:
    # As after a roll of istiod: the address of the replica that went is still the one we have.
    root = self_signed(ca_wish("root")).certificate.public_bytes(Encoding.PEM)
    async with verified_channel(silent, root, "istiod.istio-system.svc") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/a/b")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", timeout=15)
    # By the connection's limit, and not by the call's.
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
