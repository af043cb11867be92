"""Checks the socket of an agent that a person named, before it is called.

Owns the errors for a path on which no agent can answer, and how long answers may be. Invariant:
such a path is an error of this program, before gRPC reports it in its own terms.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import grpc

from sds.errors import SocketError
from sds.files import SOCKET_PATH_BYTES, socket_target
from sds.settings.paths import is_url, waits_for_a_shell

CHANNEL_OPTIONS: Final = (("grpc.max_receive_message_length", 256 << 20),)
"""An agent with thousands of identities has more to say than gRPC's 4 MiB."""
A_WORKLOADS: Final = "a workload's socket or the node-wide one"
_WHICH: Final = (
    "an agent's sockets are RUN_DIR/admin.sock, RUN_DIR/node/sds.sock and "
    "RUN_DIR/workloads/NAME/sds.sock"
)


def dialled(path: Path | str) -> str:
    """Return the gRPC target of a socket that a person named.

    Raises:
        SocketError: the socket does not exist, or this user may not open it.
    """
    if waits_for_a_shell(str(path)) or is_url(str(path)):
        raise SocketError(
            f"{path} is not the path of a socket: nothing here replaces ~ or $NAME, and a path "
            "begins without unix:",
            advice=_WHICH,
        )
    absolute = Path(path).absolute()
    if len(os.fsencode(absolute)) > SOCKET_PATH_BYTES:
        raise SocketError(
            f"the path {absolute} has more than {SOCKET_PATH_BYTES} bytes, too many for a socket",
            advice=_WHICH,
        )
    try:
        mode = absolute.stat().st_mode
    except PermissionError as error:
        raise _not_allowed(absolute) from error
    except OSError as error:
        raise SocketError(
            f"there is no socket at {absolute}: {error.strerror}",
            advice=f"check that the agent runs and that this is its run directory: {_WHICH}",
        ) from error
    if not stat.S_ISSOCK(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a file"
        raise SocketError(f"{absolute} is {kind}, not a socket", advice=_WHICH)
    if not os.access(absolute, os.R_OK | os.W_OK):
        raise _not_allowed(absolute)
    return socket_target(absolute)


def other_socket(path: Path | str, error: grpc.RpcError, *, wanted: str) -> SocketError | None:
    """Return the error if what answered has no such method: another socket of the agent.

    Args:
        path: the socket that was called.
        error: why the call failed.
        wanted: the socket that the command needs, in words.
    """
    code = getattr(error, "code", None)
    if code is None or code() is not grpc.StatusCode.UNIMPLEMENTED:
        return None
    return SocketError(
        f"{path} answers, and does not know this command: it is not {wanted}", advice=_WHICH
    )


def _not_allowed(path: Path) -> SocketError:
    return SocketError(
        f"{path} may not be opened by this user: Permission denied",
        advice="run the command as the agent's user, or as a user that the socket is for",
    )
