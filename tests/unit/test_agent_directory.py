"""The run directory and its sockets."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from sds.agent.directory import claimed, make_directory
from sds.errors import SocketError
from sds.unix_sockets import OURS_ALONE, clear_socket, listening, open_to
from tests.support import need
from tests.support.node import short_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


def test_a_full_disk_keeps_no_agent_from_its_run_directory(folder: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        with claimed(folder):
            with pytest.raises(SocketError, match=r"another agent \(pid unknown\) owns"):
                claimed(folder).__enter__()
            listening(folder / "s", 0o600).close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_system_without_locks_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SocketError, match="cannot be locked: No locks available"):
        claimed(folder).__enter__()


def test_a_dead_socket_that_cannot_be_removed_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "s"))

    def unlink(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(type(folder), "unlink", unlink)
    with pytest.raises(SocketError, match="cannot be removed: Read-only"):
        clear_socket(folder / "s")
    monkeypatch.undo()


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
    with pytest.raises(SocketError, match="is not a socket"):
        clear_socket(path)
    assert path.read_text() == "precious"


def test_the_directory_that_a_container_runtime_made_in_a_sockets_place_is_removed(
    folder: Path,
) -> None:
    """It does so for a pod that mounts the socket while no agent runs."""
    path = folder / "sds.sock"
    path.mkdir()
    listening(path, OURS_ALONE).close()
    assert path.is_socket()


def test_other_directories_in_a_sockets_place_are_left_alone(folder: Path) -> None:
    full, other, elsewhere = folder / "a.sock", folder / "other", folder / "b.sock"
    (full / "precious").mkdir(parents=True)
    other.mkdir()
    elsewhere.symlink_to(other)
    for path in (full, other, elsewhere):
        with pytest.raises(SocketError, match="is not a socket"):
            clear_socket(path)
    assert (full / "precious").is_dir()
    assert other.is_dir()
    assert elsewhere.is_symlink()


def test_a_socket_that_nobody_can_connect_to_is_said_in_words(folder: Path) -> None:
    path = folder / ("s" * 120)
    os.mknod(path, stat.S_IFSOCK | 0o600)
    with pytest.raises(SocketError, match="cannot be used: AF_UNIX path too long"):
        clear_socket(path)


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


def test_no_other_file_gets_the_mode_of_a_socket(folder: Path) -> None:
    """Who can write to the directory may put a link in its place, which root would follow."""
    (folder / "precious").touch(mode=0o600)
    (folder / "s").symlink_to("precious")
    with pytest.raises(SocketError, match="a symbolic link is in its place"):
        open_to(folder / "s", 0o666)
    assert (folder / "precious").stat().st_mode & 0o777 == 0o600


def test_a_group_that_is_not_there(folder: Path) -> None:
    with pytest.raises(SocketError, match="there is no group 'nobody-knows-it'"):
        make_directory(folder / "d", 0o750, group="nobody-knows-it")


@pytest.mark.parametrize("make", [make_directory, lambda path, _mode: claimed(path).__enter__()])
def test_a_directory_behind_a_symbolic_link(
    folder: Path, make: Callable[[Path, int], None]
) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "link").symlink_to("elsewhere")
    with pytest.raises(SocketError, match="is a symbolic link") as caught:
        make(folder / "link", 0o700)
    assert caught.value.reason == "directory_not_ours"
    folder.chmod(0o777)  # anybody could exchange the link
    with pytest.raises(SocketError, match=r"is a symbolic link|others can write"):
        make(folder / "link" / "run", 0o700)
    assert not list((folder / "elsewhere").iterdir())


@pytest.mark.root
@pytest.mark.parametrize("place", ["itself", "above", "link above"])
def test_a_directory_of_another_user(folder: Path, place: str) -> None:
    need.root()
    above, target = folder / "a", folder / "target"
    if place == "link above":
        target.mkdir()
        above.symlink_to(target)
        os.lchown(above, 4242, 4242)
    else:
        above.mkdir()
        (above / "run").mkdir()
        os.chown(above if place == "above" else above / "run", 4242, 4242)
    with pytest.raises(SocketError, match=r"belongs to user 4242|is a symbolic link"):
        make_directory(above / "run", 0o700)


def test_a_directory_that_others_can_write(folder: Path) -> None:
    run = folder / "run"
    run.mkdir()
    run.chmod(0o777)
    with pytest.raises(SocketError, match="others can write"):
        make_directory(run, 0o711)
    with pytest.raises(SocketError, match="others can write"), claimed(run):
        pass
    run.chmod(0o770)
    make_directory(run, 0o770)


def test_many_directories_share_the_check_of_what_is_above(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked with the first is not looked at again; the directory itself always is."""
    above = folder / "workloads"
    make_directory(above, 0o711)
    looked: list[str] = []
    lstat = type(folder).lstat

    def looking(path: Path) -> os.stat_result:
        looked.append(str(path))
        return lstat(path)

    monkeypatch.setattr(type(folder), "lstat", looking)
    make_directory(above / "w1", 0o711, trusted=above)
    assert set(looked) == {str(folder), str(above), str(above / "w1")}
    (above / "w2").symlink_to("w1")
    with pytest.raises(SocketError, match="is a symbolic link"):
        make_directory(above / "w2", 0o711, trusted=above)
    above.chmod(0o777)
    with pytest.raises(SocketError, match="others can write"):
        make_directory(above / "w3", 0o711, trusted=above)


@pytest.mark.root
def test_a_link_that_only_root_can_make(folder: Path) -> None:
    """As /var/run on every Linux."""
    need.root()
    (folder / "run").mkdir()
    (folder / "var").mkdir(mode=0o755)
    (folder / "var" / "run").symlink_to("../run")
    make_directory(folder / "var" / "run" / "sds", 0o711)
    assert (folder / "run" / "sds").is_dir()


def test_a_process_without_descriptors_opens_no_socket_and_says_so(tmp_path: Path) -> None:
    """What tries again knows our errors alone: the CSI driver would never be registered."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(SocketError, match="Too many open files"):
            listening(tmp_path / "s", 0o600)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
