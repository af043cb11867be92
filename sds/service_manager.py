"""Sends states and descriptors to the service manager: sd_notify(3) without libsystemd.

Owns the datagram socket to it. Invariants: without ``NOTIFY_SOCKET`` nothing is sent; a descriptor
counts as kept only after the service manager has taken it (``BARRIER=1``); programs that this
process starts do not inherit descriptors that came from the service manager.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FIRST: Final = 3
"""The number of the first inherited descriptor (SD_LISTEN_FDS_START, sd_listen_fds(3))."""
_BARRIER_SECONDS: Final = 5.0


def address(environment: Mapping[str, str]) -> str | None:
    """Return the service manager's socket, as ``connect`` takes it; None if there is none."""
    named = environment.get("NOTIFY_SOCKET", "")
    if not named.startswith(("/", "@")):
        return None
    return "\0" + named[1:] if named.startswith("@") else named


def send(place: str, state: str, descriptors: Sequence[int] = (), *, waits: bool = True) -> None:
    """Send one datagram, whose content the caller chooses.

    Args:
        place: the service manager's socket.
        state: the assignments.
        descriptors: that go with it.
        waits: for room in its queue, however long that takes.

    Raises:
        BlockingIOError: its queue is full, and this does not wait.
        OSError: the service manager does not accept it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(place)
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())] if rights else []
        sender.sendmsg([state.encode()], ancillary, 0 if waits else socket.MSG_DONTWAIT)


def keep(place: str, name: str, descriptor: int) -> None:
    """Put a descriptor into the store of the service manager, and wait until it is there.

    Source: sd_notify(3), ``FDSTORE=1``, and sd_notify_barrier: the manager closes the descriptor of
    a barrier once it has handled everything before it.

    Raises:
        OSError: the service manager does not accept it, or does not answer in time.
    """
    send(place, f"FDSTORE=1\nFDNAME={name}\nFDPOLL=0", [descriptor])
    watched, given = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            send(place, "BARRIER=1", [given])
        finally:
            os.close(given)
        poller = select.poll()
        poller.register(watched, select.POLLHUP)
        if not poller.poll(_BARRIER_SECONDS * 1000):
            raise TimeoutError("the service manager did not answer a barrier")
    finally:
        os.close(watched)


def kept(name: str, environment: Mapping[str, str], *, pid: int) -> tuple[int, ...]:
    """Return the descriptors of this name that came with the start, and set close-on-exec.

    Source: sd_listen_fds_with_names(3). Variables that are meant for another process, or that are
    not numbers, count as absent.
    """
    with contextlib.suppress(ValueError):
        if int(environment.get("LISTEN_PID", "")) == pid:
            count = int(environment.get("LISTEN_FDS", ""))
            names = environment.get("LISTEN_FDNAMES", "").split(":")
            found = [_FIRST + at for at, named in enumerate(names[:count]) if named == name]
            for descriptor in found:
                with contextlib.suppress(OSError):  # its reader reports what is wrong
                    os.set_inheritable(descriptor, False)  # noqa: FBT003  the library's own form
            return tuple(found)
    return ()
