"""READY is said to whoever waits; that nobody can read it keeps no daemon from serving."""

from __future__ import annotations

import fcntl
import io
import os
from pathlib import Path

import pytest

from sds.commands.daemon_options import say_ready


@pytest.fixture
def pipe() -> tuple[int, int]:
    return os.pipe()


def _say(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say READY there, as a process with this stdout would."""
    stream = io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False))
    monkeypatch.setattr("sys.stdout", stream)
    say_ready("READY 127.0.0.1:8443")
    stream.close()  # would raise if something was still to be written


def test_the_line_is_there_at_once(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reading, writing = pipe
    _say(writing, monkeypatch)
    assert os.read(reading, 100) == b"READY 127.0.0.1:8443\n"
    os.close(writing)
    os.close(reading)
    with (tmp_path / "out").open("wb") as file:
        _say(file.fileno(), monkeypatch)
    assert (tmp_path / "out").read_bytes() == b"READY 127.0.0.1:8443\n"


def test_a_full_disk_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("wb") as full:
        _say(full.fileno(), monkeypatch)


def test_a_reader_that_is_gone_is_no_error(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe
    os.close(reading)
    _say(writing, monkeypatch)
    os.close(writing)


def test_a_reader_that_does_not_read_is_not_waited_for(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = pipe
    size = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, bytes(size))
    _say(writing, monkeypatch)
    os.close(writing)
    read = b""
    while chunk := os.read(reading, size):
        read += chunk
    assert read == bytes(size) + b"READY 127.0.0.1:8443\n"
    os.close(reading)


def test_without_an_output_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    say_ready("READY")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    say_ready("READY")
