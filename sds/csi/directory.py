"""Directories and sockets of volumes, on disk.

Owns how a pod's directory is made, found again and removed. Invariants: nothing is mounted; no
symbolic link on the way is followed; a new socket takes the place of an old one in one step, so
that a client never finds none; removing what is gone is not an error.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Final

from sds.csi.volume import MAX_RECORD_BYTES, RECORD, PodVolume, recorded
from sds.errors import SocketError, WorkloadError
from sds.files import read_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOCKET_NAME: Final = "sds.sock"
ISTIO_NAME: Final = "socket"
"""Istio's sidecars look for this name in ``workload-spiffe-uds``: a link beside the socket."""
_NEW: Final = ".sds.sock.new"
_EVERYBODY: Final = 0o666
_DIRECTORY_MODE: Final = 0o755
_BACKLOG: Final = 512
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_socket(volume: PodVolume, *, kubelet: Path) -> socket.socket:
    """A listening socket in the volume's directory, which is made if it is missing.

    Raises:
        SocketError: it cannot be made.
    """
    try:
        with _opened(volume, kubelet=kubelet, make=True) as directory:
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
    """Remove the volume's directory and what this driver put there.

    Raises:
        SocketError: it cannot be removed.
    """
    try:
        with _opened(volume, kubelet=kubelet, make=False) as directory:
            for name in (SOCKET_NAME, ISTIO_NAME, _NEW):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
        volume.target.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise SocketError(
            f"the directory {volume.target} cannot be removed: {error.strerror or error}",
            advice="look what else is in it; the kubelet asks again",
        ) from error


def known_volumes(kubelet: Path, *, driver: str) -> Iterator[PodVolume | WorkloadError]:
    """Every volume of this driver that the kubelet has a record of; a broken one as its error.

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
        for record in sorted(pod.glob(f"volumes/kubernetes.io~csi/*/{RECORD}")):
            try:
                content = read_file(record, max_bytes=MAX_RECORD_BYTES)
                volume = recorded(
                    content, target=record.parent / "mount", driver=driver, kubelet=kubelet
                )
            except FileNotFoundError:  # the pod has just gone
                continue
            except OSError as error:
                yield WorkloadError(
                    f"{record} cannot be read: {error.strerror}", reason="csi_volume"
                )
            except WorkloadError as error:
                yield error
            else:
                if volume is not None:
                    yield volume


@contextlib.contextmanager
def _opened(volume: PodVolume, *, kubelet: Path, make: bool) -> Iterator[int]:
    """The volume's directory as a descriptor, reached step by step without following links."""
    steps = volume.target.relative_to(kubelet).parts
    here = os.open(kubelet, _DIRECTORY & ~os.O_NOFOLLOW)
    try:
        for step in steps:
            if make and step == steps[-1]:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(step, _DIRECTORY_MODE, dir_fd=here)
            below = os.open(step, _DIRECTORY, dir_fd=here)
            os.close(here)
            here = below
        if make:
            os.fchmod(here, _DIRECTORY_MODE)
        yield here
    finally:
        os.close(here)


def _bound(directory: int) -> socket.socket:
    """A socket that listens under a temporary name in the directory.

    A path through /proc reaches it: the kubelet's paths are longer than the 107 bytes of an
    address (unix(7)).
    """
    path = f"/proc/self/fd/{directory}/{_NEW}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_NEW, dir_fd=directory)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        os.chmod(_NEW, _EVERYBODY, dir_fd=directory)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
