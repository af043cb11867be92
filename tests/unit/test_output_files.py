"""Files that commands write: whole, or as they were; and pipes, which are only written to."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from sds.commands.output import write_output
from sds.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


def full(_descriptor: int) -> None:
    raise OSError(28, os.strerror(28))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="out cannot be written: No space left"):
        write_output(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def test_a_link_stays_and_leads_to_the_output(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("kept")
    for content in (b"one", b"two"):
        write_output(tmp_path / "out", content)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "kept").read_bytes() == content


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_output(tmp_path / "pipe", b"evidence")
    reader.join(10)
    assert read == [b"evidence"]
    assert (tmp_path / "pipe").is_fifo()


def test_an_open_file_is_written_to(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as opened:
        write_output(tmp_path.__class__(f"/dev/fd/{opened.fileno()}"), b"evidence")
    assert (tmp_path / "out").read_bytes() == b"evidence"


@pytest.mark.parametrize("place", [".", "missing/out"])
def test_what_cannot_be_written_is_said(tmp_path: Path, place: str) -> None:
    with pytest.raises(ConfigurationError, match="cannot be written"):
        write_output(tmp_path / place, b"evidence")
