"""The run directory and its sockets."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from sds.agent.directory import claimed, clear_socket, make_directory, open_to
from sds.errors import SocketError
from tests.support.node import short_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as made:
        yield made


def test_one_agent_a_run_directory(folder: Path) -> None:
    run_dir = folder / "a" / "run"
    with claimed(run_dir):
        assert run_dir.stat().st_mode & 0o777 == 0o700
        with pytest.raises(SocketError, match=rf"another agent \(pid {os.getpid()}\) owns"):
            claimed(run_dir).__enter__()
    with claimed(run_dir):
        pass


def test_a_run_directory_that_is_no_directory(folder: Path) -> None:
    file = folder / "file"
    file.touch()
    with pytest.raises(SocketError, match="cannot be made"), claimed(file):
        pass


def test_a_socket_of_the_dead_is_removed_and_of_the_living_never(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(SocketError, match="another process listens"):
            clear_socket(path)
    assert path.exists()
    clear_socket(path)
    assert not path.exists()
    clear_socket(path)


def test_a_file_in_a_sockets_place_is_left_alone(folder: Path) -> None:
    path = folder / "s"
    path.write_text("precious")
    with pytest.raises(SocketError, match="is no socket"):
        clear_socket(path)
    assert path.read_text() == "precious"


def test_modes_are_exact_whatever_the_umask(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        make_directory(folder / "d", 0o755)
        assert (folder / "d").stat().st_mode & 0o777 == 0o755
        (folder / "f").touch()
        open_to(folder / "f", 0o666)
        assert (folder / "f").stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)


def test_a_group_that_is_not_there(folder: Path) -> None:
    with pytest.raises(SocketError, match="there is no group 'nobody-knows-it'"):
        make_directory(folder / "d", 0o750, group="nobody-knows-it")
