"""Fixtures of the tests against servers in this process."""

from __future__ import annotations

import socket

import pytest

from tests.support import serving


@pytest.fixture(params=["own", "grpc"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs on our transport and on its fallback."""
    monkeypatch.setattr(serving, "TRANSPORT", request.param)
    return str(request.param)


@pytest.fixture
def unused_address() -> str:
    """A loopback address on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"
