"""Fixtures of the tests against servers in this process."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def unused_address() -> str:
    """A loopback address on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"
