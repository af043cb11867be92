"""Who is measured: our service, the floor, the whole agent, and any other SDS server.

A contestant is started afresh for each measurement, as a program that prints one line when it
serves, ``ready socket=PATH pid=PID``, and ends at SIGTERM; with ``rotation=SIGUSR1`` in that line,
the signal makes one rotation and is answered by a line with the time (ns since 1970) at which the
new certificate was there. Or it runs already, and is only looked at.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 30.0
OWN = ("ours", "prototype", "agent", "node")
PEERS = ("spire", "istio")


@dataclass(frozen=True)
class Server:
    """One that serves now; ``rotating``: its process, where a signal makes it rotate."""

    socket: str
    pid: int
    rotating: subprocess.Popen[str] | None = None

    def rotate(self) -> int | None:
        """Make one rotation; the time (ns) at which the new certificate was in its store."""
        if self.rotating is None or self.rotating.stdout is None:
            return None
        os.kill(self.pid, signal.SIGUSR1)
        return int(self.rotating.stdout.readline())


@dataclass(frozen=True)
class Contestant:
    """One column of the table; ``names`` where its secrets are called otherwise than ours."""

    label: str
    start: Callable[[], AbstractContextManager[Server]]
    names: list[str] = field(default_factory=list)


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[Server]:
    """A program that says where it serves."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready "):
            raise SystemExit(f"{shlex.join(command)} never said that it is ready: {line!r}")
        said = dict(word.split("=", 1) for word in line.split()[1:])
        rotating = process if said.get("rotation") == "SIGUSR1" else None
        yield Server(said["socket"], int(said["pid"]), rotating)
    finally:
        process.terminate()
        process.wait(PATIENCE)


def chosen(kind: str, folder: str, lifetime: str) -> Contestant:
    """Our service, the floor (prototype), the agent by its own or the node's socket, or a peer."""
    if kind in PEERS:
        script = [str(ROOT / "bench/peers/run.py"), kind, "--lifetime", lifetime]
    elif kind in ("agent", "node"):
        script = [str(ROOT / "bench/whole_agent.py"), kind, "--lifetime", lifetime]
    else:
        script = [str(ROOT / "bench/sds_server.py"), kind, f"{folder}/{kind}.sock"]
    return Contestant(kind, lambda: started([sys.executable, *script]))


def running(text: str) -> Contestant:
    """``LABEL=SOCKET,PID[,NAME…]``: a server that runs already; it rotates when it likes."""
    label, _, rest = text.partition("=")
    socket, pid, *names = rest.split(",")
    return Contestant(label, lambda: contextlib.nullcontext(Server(socket, int(pid))), names)


def program(text: str) -> Contestant:
    """``LABEL=COMMAND``: a program that says where it serves."""
    label, _, command = text.partition("=")
    return Contestant(label, lambda: started(shlex.split(command)))
