"""Opens and closes the volumes of pods as the kubelet asks.

Owns the list of volumes that have a listening socket. Invariants: one operation on files runs at a
time, in its own thread, so the event loop never waits for a disk; a repeated request changes
nothing (CSI requires idempotence); a pod has at most :data:`~sds.csi.volume.MOST_OF_A_POD` volumes,
because the author of a pod may list thousands; a volume that fails is logged, counted and answered,
and affects no other volume; a new agent opens the sockets again for pods that outlived the old one,
and tries again those that it cannot open: the kubelet asks only once for each.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from sds import threads
from sds.backoff import Backoff, Retry
from sds.csi.volume import MOST_OF_A_POD, PodVolume, at_target, published
from sds.csi.volume_files import SOCKET_NAME, known_volumes, open_socket, remove
from sds.errors import SdsError, SocketError, WorkloadError
from sds.files import is_taken

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from pathlib import Path

    from sds._proto.csi.v1 import csi_pb2
    from sds.clock import Clock

_LOGGER: Final = logging.getLogger(__name__)
_AGAIN: Final = Backoff(first=1.0, longest=60.0)
_T = TypeVar("_T")


class PodDoor(Protocol):
    """Serves on the sockets of pods."""

    def listen(self, listener: socket.socket, *, pod_uid: str) -> Callable[[], None]:
        """Accept callers of this pod on the socket, until the returned function is called."""
        ...


class Driver:
    """Opens and closes the sockets of volumes."""

    def __init__(self, *, name: str, kubelet: Path, door: PodDoor) -> None:
        self.name = name
        self.failures: Counter[str] = Counter()
        """How many volumes failed since the start, by reason."""
        self._kubelet = kubelet
        self._door = door
        self._volumes: dict[Path, Callable[[], None]] = {}
        self._of_pod: Counter[str] = Counter()
        self._one = asyncio.Lock()
        self._failed: set[str] = set()
        """What the last :meth:`restore` could not do, in words; it is tried again."""
        self._unpublished: set[Path] = set()
        """Volumes that ended meanwhile; the kubelet may still have a record of them."""

    @property
    def volumes(self) -> int:
        """Return how many volumes have a listening socket."""
        return len(self._volumes)

    async def publish(self, request: csi_pb2.NodePublishVolumeRequest) -> None:
        """Make the volume's directory and listen in it.

        Raises:
            WorkloadError: ``csi_volume``: the volume breaks a rule.
            SocketError: the directory or the socket cannot be made.
        """
        volume = published(request, kubelet=self._kubelet)
        async with self._one:
            self._unpublished.discard(volume.target)
            await self._open(volume)

    async def unpublish(self, request: csi_pb2.NodeUnpublishVolumeRequest) -> None:
        """Stop listening and remove the directory.

        Raises:
            WorkloadError: ``csi_volume``: the path is not one of a volume.
            SocketError: the directory cannot be removed.
        """
        volume = at_target(request.target_path, kubelet=self._kubelet)
        async with self._one:
            if self._failed:
                self._unpublished.add(volume.target)
            self._stop(volume)
            await self._on_files(lambda: remove(volume, kubelet=self._kubelet))

    async def restore(self) -> None:
        """Listen again for every volume that the kubelet has a record of.

        What fails is said, and what failed for the same reason before is not.

        Raises:
            SocketError: the kubelet's directory cannot be listed.
        """
        failed: set[str] = set()
        async with self._one:
            found = await self._on_files(
                lambda: list(known_volumes(self._kubelet, driver=self.name))
            )
            for each in found:
                try:
                    if isinstance(each, WorkloadError):
                        raise each
                    if each.target not in self._unpublished:
                        await self._open(each)
                except SdsError as error:
                    failed.add(str(error))
                    if str(error) not in self._failed:
                        self.failed(error)
            self._failed = failed
            self._unpublished &= {one.target for one in found if isinstance(one, PodVolume)}
        _LOGGER.log(
            logging.DEBUG if failed else logging.INFO,
            "the sockets of CSI volumes are open",
            extra={"volumes": self.volumes},
        )

    async def restore_rest(self, *, clock: Clock) -> None:
        """Try again what :meth:`restore` could not open, until cancelled."""
        retry = Retry(clock, _AGAIN)
        while self._failed:
            await retry.pause()
            try:
                await self.restore()
            except SocketError as error:
                if str(error) not in self._failed:
                    self._failed.add(str(error))
                    self.failed(error)
        self._unpublished.clear()
        await asyncio.Event().wait()

    def failed(self, error: SdsError) -> None:
        """Log and count what went wrong with one volume."""
        self.failures[error.reason] += 1
        _LOGGER.warning("a CSI volume failed: %s", error, extra={"reason": error.reason})

    def close(self) -> None:
        """Stop listening; leave the directories for the next agent."""
        for stop in self._volumes.values():
            stop()
        self._volumes.clear()

    async def _open(self, volume: PodVolume) -> None:
        if volume.target in self._volumes:
            path = volume.target / SOCKET_NAME
            if await self._on_files(lambda: is_taken(path)):
                return
            self._stop(volume)  # somebody removed the socket, so nobody could connect
        if self._of_pod[volume.pod_uid] >= MOST_OF_A_POD:
            raise WorkloadError(
                f"pod {volume.pod_uid} has {MOST_OF_A_POD} volumes of this driver already",
                reason="csi_volume",
                advice="mount one volume into all containers of the pod",
            )
        listener = await self._on_files(lambda: open_socket(volume, kubelet=self._kubelet))
        self._volumes[volume.target] = self._door.listen(listener, pod_uid=volume.pod_uid)
        self._of_pod[volume.pod_uid] += 1

    def _stop(self, volume: PodVolume) -> None:
        """Stop listening for a volume, if this driver does."""
        stop = self._volumes.pop(volume.target, None)
        if stop is not None:
            stop()
            self._of_pod -= Counter((volume.pod_uid,))  # leaves no zeros

    async def _on_files(self, work: Callable[[], _T]) -> _T:
        return await threads.VOLUMES.run(work)
