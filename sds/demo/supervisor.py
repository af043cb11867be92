"""Keeps the parts of the demo running: starts them, restarts them, and ends them all.

Owns every child process. Invariants: a part that ends is started again after two seconds, and both
events are reported; however this process ends, no child remains (the kernel sends each SIGKILL when
its parent dies); a log that cannot be written ends nothing; a secret reaches a child through an
inherited descriptor (memory, not a file), never through an argument or the environment.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ctypes
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sds.demo.events import Exited, Started
from sds.errors import SdsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from sds.clock import Clock

RESTART_SECONDS: Final = 2.0
STOP_SECONDS: Final = 5.0
_LAST_LINES: Final = 12
_PR_SET_PDEATHSIG: Final = 1
_READ_BYTES: Final = 65536

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process to keep running.

    Attributes:
        name: its name in events and logs.
        command: its command line.
        descriptors: the open descriptors that it inherits, under the same numbers, at every start.
        environment: the variables that are added to this process's environment.
    """

    name: str
    command: Sequence[str]
    descriptors: Sequence[int] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


class Log:
    """One part's log file. What cannot be written is lost: a full disk ends nothing."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._descriptor = os.open(path, flags, 0o644)

    def write(self, text: str) -> None:
        """Append a text."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.write(self._descriptor, text.encode(errors="replace"))

    def close(self) -> None:
        """Close the file; nothing was kept in memory."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None


class Supervisor:
    """Runs the parts and restarts those that end.

    Args:
        parts: the processes to keep running.
        logs: the directory for one log file a part.
        clock: waits between an end and the next start.
        tell: is called with every unexpected end and every restart.
        line: is called with each line that a part prints (name of the part, text).
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        logs: Path,
        clock: Clock,
        tell: Callable[[Exited | Started], None],
        line: Callable[[str, str], None],
    ) -> None:
        self.pids: dict[str, int] = {}
        self._parts = parts
        self._logs = logs
        self._clock = clock
        self._tell = tell
        self._line = line
        self._settled = False
        self._last: dict[str, collections.deque[str]] = {
            part.name: collections.deque(maxlen=_LAST_LINES) for part in parts
        }
        self._all_started = asyncio.Event()

    async def run(self) -> None:
        """Keep every part running until cancelled; then end them all.

        Raises:
            SdsError: ``part_ended``: a part ended before :meth:`settle` was called.
        """
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(self._keep(part), name=f"keep {part.name}")

    async def started(self) -> None:
        """Wait until every part was started once."""
        await self._all_started.wait()

    def settle(self) -> None:
        """Note that every part works: from now on an end is repaired and not fatal."""
        self._settled = True

    def last_lines(self, name: str) -> str:
        """Return the last lines that a part printed."""
        return "\n".join(self._last[name])

    async def _keep(self, part: Part) -> None:
        again = False
        while True:
            with contextlib.closing(Log(self._logs / f"{part.name}.log")) as log:
                process = await _start(part)
                self.pids[part.name] = process.pid
                if len(self.pids) == len(self._parts):
                    self._all_started.set()
                if again:
                    self._tell(Started(process=part.name, pid=process.pid))
                try:
                    await self._read(part.name, process, log.write)
                    status = await process.wait()
                finally:
                    await _stop(process)
            if not self._settled:
                raise SdsError(
                    f"{part.name} ended with status {status} before the first request went "
                    f"through; it said:\n{self.last_lines(part.name)}",
                    reason="part_ended",
                )
            self._tell(Exited(process=part.name, pid=process.pid, status=status))
            await self._clock.sleep(RESTART_SECONDS)
            again = True

    async def _read(
        self, name: str, process: asyncio.subprocess.Process, log: Callable[[str], object]
    ) -> None:
        """Pass on every line until the process closes its output."""
        stream = process.stdout
        if stream is None:
            return
        rest = b""
        while chunk := await stream.read(_READ_BYTES):
            *whole, rest = (rest + chunk).split(b"\n")
            for raw in whole:
                text = raw.decode(errors="replace")
                log(text + "\n")
                self._last[name].append(text)
                self._line(name, text)


async def _start(part: Part) -> asyncio.subprocess.Process:
    """Start a part.

    Raises:
        SdsError: ``part_ended``: the system does not start it.
    """
    try:
        return await asyncio.create_subprocess_exec(
            *part.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **part.environment},
            pass_fds=part.descriptors,
            # Ctrl-C on the terminal is meant for this process, which ends the others in order.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
    except OSError as error:
        raise SdsError(
            f"{part.name} cannot be started: {part.command[0]}: {error.strerror}",
            reason="part_ended",
            advice="check that it is a program for this machine",
        ) from error


def _die_with_parent() -> None:
    """Ask for SIGKILL when the parent dies (prctl(2)); runs in the child before the command."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Send SIGTERM, then SIGKILL; do nothing if the process has already ended."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
