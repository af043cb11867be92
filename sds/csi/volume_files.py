"""Makes, finds and removes the directories and sockets of volumes on disk.

Owns the files of a volume. Invariants: nothing is mounted; no symbolic link on the path is
followed; a new socket replaces an old one in one step, so that a client always finds one; removing
a directory that is already gone is not an error.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from sds.csi.volume import MAX_RECORD_BYTES, RECORD, PodVolume, recorded
from sds.descriptors import refuse_passed
from sds.errors import SocketError, WorkloadError
from sds.files import read_file
from sds.unix_sockets import EVERYBODY, ISTIO_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOCKET_NAME: Final = "sds.sock"
_NEW: Final = ".sds.sock.new"
_MOVED: Final = ".sds.moved.{}"
MOST_REMOVED: Final = 256
"""The most directories that one request removes; measured: 2 ms each on a busy disk."""
_DIRECTORY_MODE: Final = 0o755
_BACKLOG: Final = 512
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_socket(volume: PodVolume, *, kubelet: Path) -> socket.socket:
    """Make a listening socket in the volume's directory, and the directory if it is missing.

    Raises:
        SocketError: the directory or the socket cannot be made.
    """
    try:
        with _above(volume, kubelet=kubelet) as above, _made(volume, above) as directory:
            listener = _bound(directory)
            try:
                os.replace(_NEW, SOCKET_NAME, src_dir_fd=directory, dst_dir_fd=directory)
                with contextlib.suppress(FileExistsError):
                    os.symlink(SOCKET_NAME, ISTIO_NAME, dir_fd=directory)
            except BaseException:
                listener.close()
                raise
            return listener
    except OSError as error:
        raise SocketError(
            f"the socket of volume {volume.name!r} of pod {volume.pod_uid} cannot be made in "
            f"{volume.target}: {error.strerror or error}",
            advice="the agent needs the kubelet's directory `pods`, writable",
        ) from error


def remove(volume: PodVolume, *, kubelet: Path) -> None:
    """Remove the volume's directory, what this driver put there, and empty directories.

    The kubelet makes those for a ``subPath`` that the pod's author names, however deep, and would
    wait forever for the volume to go.

    Raises:
        SocketError: the directory cannot be removed.
    """
    try:
        with _above(volume, kubelet=kubelet) as above:
            with _below(above, volume.target.name) as directory:
                for name in (SOCKET_NAME, ISTIO_NAME, _NEW):
                    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                        os.unlink(name, dir_fd=directory)
                _remove_empty(directory)
            os.rmdir(volume.target.name, dir_fd=above)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(
            f"the directory {volume.target} cannot be removed: {error.strerror or error}",
            advice="check what else the directory contains; the kubelet asks again",
        ) from error


def _remove_empty(directory: int) -> None:
    """Remove the directories in a directory that have nothing but directories in them.

    Raises:
        OSError: a file is in one of them, or they are so many that the rest must wait for another
            request: one volume at a time is worked on.
    """
    there = _directories(directory)
    free = (each for each in map(_MOVED.format, itertools.count()) if each not in there)
    left = list(there)
    removed = 0
    while left:
        if removed == MOST_REMOVED:
            raise OSError(errno.EAGAIN, f"it has more than {MOST_REMOVED} directories")
        removed += 1
        name = left.pop()
        with _below(directory, name) as below:
            # One above the other would take a descriptor, or a frame, for each.
            for inner in _directories(below):
                moved = next(free)
                os.rename(inner, moved, src_dir_fd=below, dst_dir_fd=directory)
                left.append(moved)
        os.rmdir(name, dir_fd=directory)


def _directories(directory: int) -> set[str]:
    with os.scandir(directory) as entries:
        return {each.name for each in entries if each.is_dir(follow_symlinks=False)}


def known_volumes(kubelet: Path, *, driver: str) -> Iterator[PodVolume | WorkloadError]:
    """Return every volume of this driver that the kubelet recorded, or its error if it is broken.

    Raises:
        SocketError: the kubelet's directory cannot be listed.
    """
    pods = kubelet / "pods"
    try:
        found = sorted(pods.iterdir())
    except OSError as error:
        raise SocketError(
            f"{pods} cannot be listed: {error.strerror}",
            advice="mount the kubelet's directory `pods` into the agent at the same path",
        ) from error
    for pod in found:
        try:
            records = sorted(pod.glob(f"volumes/kubernetes.io~csi/*/{RECORD}"))
        except FileNotFoundError:  # the pod has just ended
            continue
        except OSError as error:
            yield WorkloadError(f"{pod} cannot be listed: {error.strerror}", reason="csi_volume")
            continue
        for record in records:
            volume = _known(record, driver=driver, kubelet=kubelet)
            if volume is not None:
                yield volume


def _known(record: Path, *, driver: str, kubelet: Path) -> PodVolume | WorkloadError | None:
    """Return the volume of one record; None if it is another driver's, or has just gone."""
    try:
        content = read_file(record, max_bytes=MAX_RECORD_BYTES)
        return recorded(content, target=record.parent / "mount", driver=driver, kubelet=kubelet)
    except FileNotFoundError:
        return None
    except OSError as error:
        return WorkloadError(f"{record} cannot be read: {error.strerror}", reason="csi_volume")
    except WorkloadError as error:
        return error


@contextlib.contextmanager
def _above(volume: PodVolume, *, kubelet: Path) -> Iterator[int]:
    """Open the directory above the volume's, step by step without following links."""
    here = os.open(kubelet, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        for step in volume.target.parent.relative_to(kubelet).parts:
            below = os.open(step, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        yield here
    finally:
        os.close(here)


@contextlib.contextmanager
def _below(above: int, name: str) -> Iterator[int]:
    descriptor = os.open(name, _DIRECTORY, dir_fd=above)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _made(volume: PodVolume, above: int) -> Iterator[int]:
    """Open the volume's directory; make it first if it is missing."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(volume.target.name, _DIRECTORY_MODE, dir_fd=above)
    with _below(above, volume.target.name) as directory:
        os.fchmod(directory, _DIRECTORY_MODE)
        yield directory


def _bound(directory: int) -> socket.socket:
    """Make a socket in the directory that listens under a temporary name.

    A path through /proc reaches it: the kubelet's paths are longer than the 107 bytes of an
    address (unix(7)).
    """
    path = f"/proc/self/fd/{directory}/{_NEW}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_NEW, dir_fd=directory)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        refuse_passed(listener)
        listener.bind(path)
        _open_to_everybody(directory)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _open_to_everybody(directory: int) -> None:
    """Set the mode of the socket itself; a link that has replaced it is an error."""
    found = os.open(_NEW, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISSOCK(os.fstat(found).st_mode):
            raise OSError(errno.EEXIST, "something else has the socket's name")
        os.chmod(f"/proc/self/fd/{found}", EVERYBODY)  # noqa: PTH101  a descriptor
    finally:
        os.close(found)
