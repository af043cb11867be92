"""Telling the service manager how we are: sd_notify(3), without libsystemd.

Invariant: without ``NOTIFY_SOCKET`` nothing happens; a service manager that does not listen never
stops the program.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

_LOG = logging.getLogger("sds.operations.notify")
READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"


def notify(state: str) -> None:
    """Send one state, such as :data:`READY`; more assignments stand on further lines.

    Source: sd_notify(3): one datagram to the Unix socket that the variable names; ``@`` stands for
    an abstract one.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.sendall(state.encode())
    except OSError as error:
        _LOG.warning("the service manager cannot be told", extra={"why": error.strerror})
