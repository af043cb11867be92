"""Fixtures of the tests against servers in this process."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.support import serving
from tests.support.intel import FMSPC, Intel
from tests.support.publishers import Publishers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


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


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


@pytest.fixture
async def publishers(intel: Intel, tmp_path: Path) -> AsyncIterator[Publishers]:
    """Imitations of the manufacturers' services, with Intel's collateral."""
    made = Publishers.of_folder(intel.collateral(tmp_path / "made"), FMSPC.hex())
    async with made.running():
        yield made
