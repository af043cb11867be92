"""Whoever changes a configuration file hears that this needs a restart."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sds.ca.config import AuthorityConfig
from sds.clock import SystemClock
from sds.errors import ConfigurationError
from sds.operations.configuration_file import ConfigurationFile
from sds.operations.hangup import on_hangup

if TYPE_CHECKING:
    from collections.abc import Iterator

GOOD = "trust_domain: a.example\n"


@pytest.fixture(autouse=True)
def ignored() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as sds.entry does
    yield
    signal.signal(signal.SIGHUP, before)


async def until(file: ConfigurationFile[AuthorityConfig], *words: str) -> None:
    """Ask as `systemctl reload` does, until this is the notice."""
    os.kill(os.getpid(), signal.SIGHUP)
    async with asyncio.timeout(20):
        while [all(word in one for word in words) for one in file.notices()] != [True] * bool(
            words
        ):
            await asyncio.sleep(0.01)


async def test_a_change_is_told_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "ca.yaml"
    path.write_text(GOOD)
    file = ConfigurationFile(path, AuthorityConfig)
    policy: list[str] = []
    async with file.followed(clock=SystemClock()):
        with on_hangup(lambda: policy.append("read")):
            path.write_text(GOOD + "listen: 127.0.0.1:1\n")
            await until(file, f"{path} changed after the start", "until it is restarted")
            assert policy == ["read"], "what follows its own files hears of SIGHUP too"
            path.write_text(GOOD + "lisen: 127.0.0.1:1\n")
            await until(file, "a restart would fail", "lisen: unknown field")
            path.unlink()
            await until(file, "a restart would fail", "cannot be read")
            path.write_text(GOOD)
            await until(file)
    assert file.config.listen == "127.0.0.1:8443"
    assert [one.levelname for one in caplog.records] == ["WARNING"] * 3 + ["INFO"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


async def test_it_is_told_again_to_who_asks_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ca.yaml"
    path.write_text(GOOD)
    file = ConfigurationFile(path, AuthorityConfig)
    path.write_text(GOOD + "# another\n")
    async with file.followed(clock=SystemClock()):
        for times in (1, 2):
            await until(file, "changed after the start")
            async with asyncio.timeout(20):
                while caplog.text.count("changed after the start") < times:
                    await asyncio.sleep(0.01)


async def test_a_pipe_is_read_once() -> None:
    reading, writing = os.pipe()
    os.write(writing, GOOD.encode())
    os.close(writing)
    try:
        file = ConfigurationFile(Path(f"/dev/fd/{reading}"), AuthorityConfig)
        async with file.followed(clock=SystemClock()):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, "nobody looks"
    finally:
        os.close(reading)
    assert file.notices() == ()


def test_a_file_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ConfigurationFile(tmp_path / "none", AuthorityConfig)
