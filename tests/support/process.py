"""Real processes in tests: started, read line by line, and always gone at the end.

``async with running([...]) as process:`` collects every line of stdout and stderr while it runs;
:meth:`Process.line` waits for one by regular expression, with a deadline. Leaving the block sends
SIGTERM, then SIGKILL to the whole process group. ``sds(...)`` is the command of this checkout;
``make coverage`` measures its coverage too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from typing import TYPE_CHECKING

from tests.support.need import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

PATIENCE_SECONDS = 60.0
"""How long a test waits for something that takes a moment: two loaded cores are slow."""

STOP_SECONDS = 15.0

_POLL_SECONDS = 0.02


class Process:
    """One process and all that it has said; made by :func:`running`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self.lines: list[str] = []
        self._process = process
        self._news = asyncio.Event()
        self._readers = [
            asyncio.create_task(self._read(process.stdout, self.stdout)),
            asyncio.create_task(self._read(process.stderr, self.stderr)),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status (negative: killed by that signal), or None while it runs."""
        return self._process.returncode

    @property
    def text(self) -> str:
        """All lines of both streams, in the order of their arrival."""
        return "\n".join(self.lines)

    async def line(
        self, pattern: str, *, seconds: float = PATIENCE_SECONDS, after: int = 0
    ) -> re.Match[str]:
        """The first match of ``pattern`` in a line (from index ``after`` of ``lines``)."""
        compiled = re.compile(pattern)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    while after < len(self.lines):
                        if found := compiled.search(self.lines[after]):
                            return found
                        after += 1
                    if all(reader.done() for reader in self._readers):
                        break
                    await self._news.wait()
        except TimeoutError:
            pass
        message = f"{self.name} (status {self.returncode}) never said {pattern!r}; it said:\n"
        raise AssertionError(message + self.text)

    async def tell(self, line: str = "") -> None:
        """Write one line to its stdin (start it with ``stdin=asyncio.subprocess.PIPE``)."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        await self._process.stdin.drain()

    def signal(self, number: int) -> None:
        """Send a signal to the process (not to its children)."""
        self._process.send_signal(number)

    async def wait(self, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Wait for the end of the process and of its output; the exit status."""
        try:
            async with asyncio.timeout(seconds):
                status = await self._exited()
                await asyncio.gather(*self._readers)
        except TimeoutError:
            message = f"{self.name} did not end within {seconds} s; it said:\n{self.text}"
            raise AssertionError(message) from None
        return status

    async def terminate(self, *, seconds: float = STOP_SECONDS) -> int:
        """SIGTERM, then wait; the exit status."""
        if self.returncode is None:
            self.signal(signal.SIGTERM)
        return await self.wait(seconds=seconds)

    async def kill(self) -> int:
        """SIGKILL, as a crash does, then wait; the exit status."""
        if self.returncode is None:
            self.signal(signal.SIGKILL)
        return await self.wait(seconds=STOP_SECONDS)

    async def _end(self) -> None:
        """Leave nothing behind: neither the process nor a child in its group."""
        if self.returncode is None:
            self.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._exited(), STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._process.wait()
        await asyncio.gather(*self._readers)

    async def _exited(self) -> int:
        """The exit status; ``Process.wait`` would wait for children that hold the pipes, too."""
        while (status := self.returncode) is None:
            await asyncio.sleep(_POLL_SECONDS)
        return status

    async def _read(self, stream: asyncio.StreamReader | None, lines: list[str]) -> None:
        assert stream is not None
        rest = b""
        while chunk := await stream.read(65536):
            *whole, rest = (rest + chunk).split(b"\n")
            self._said(lines, whole)
        self._said(lines, [rest] if rest else [])

    def _said(self, lines: list[str], raw: list[bytes]) -> None:
        decoded = [line.decode(errors="replace") for line in raw]
        lines.extend(decoded)
        self.lines.extend(decoded)
        self._news.set()
        self._news = asyncio.Event()


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str | Path],
    *,
    name: str = "",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
    stdin: int = asyncio.subprocess.DEVNULL,
) -> AsyncIterator[Process]:
    """Run ``command`` while the block runs. ``env`` is added to this process's environment."""
    started = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        cwd=cwd or ROOT,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    process = Process(name or os.fspath(command[0]), started)
    try:
        yield process
    finally:
        await process._end()


def sds(*arguments: str | Path) -> list[str]:
    """The command line of ``sds`` as this checkout has it."""
    return [sys.executable, "-m", "sds", *map(str, arguments)]


async def output(
    command: Sequence[str | Path],
    *,
    seconds: float = PATIENCE_SECONDS,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[int, str, str]:
    """Run ``command`` to its end: exit status, stdout, stderr."""
    async with running(command, env=env, cwd=cwd) as process:
        status = await process.wait(seconds=seconds)
    return status, "\n".join(process.stdout), "\n".join(process.stderr)
