"""Writes log lines without ever waiting for the reader of a pipe or a socket.

When a pipe is full, it blocks its writer until the reader reads. The writer would be the event
loop, so a stopped log collector, or one with a full disk, would silence every socket of the agent.
Owns :class:`LogSink`. Invariants: the caller of :meth:`LogSink.write` never waits for a reader;
waiting lines keep their order, and their size is bounded; a line is written whole, or it is lost
and counted if it finds no room; a sink writes to a descriptor of its own, so a line that still
waits when the stream is closed cannot reach a file that gets the same number later. Lines for files
and terminals are written at once.

Source: pipe(7): a pipe that is writable (POLLOUT) takes PIPE_BUF bytes at once, even if another
process has set it to O_NONBLOCK.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import TextIO

MOST_WAITING: Final = 1 << 20
"""Bytes of lines that wait for a reader: a crowd's, while the reader has no processor."""
_AT_ONCE: Final = select.PIPE_BUF
_END_SECONDS: Final = 1.0


class LogSink:
    """Writes lines to a stream; see the module.

    Args:
        stream: for text; nobody else writes to it meanwhile.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._descriptor = _of_a_reader(stream)
        self._poll = select.poll()
        if self._descriptor is not None:
            self._poll.register(self._descriptor, select.POLLOUT)
            # The writer's thread keeps this object, so its descriptor stays open as long.
            weakref.finalize(self, os.close, self._descriptor).atexit = False
        self._lock = threading.Lock()
        """Guards what follows."""
        self._waiting: deque[bytes] = deque()
        self._held = 0
        self._writer: threading.Thread | None = None
        """Waits for the reader, while lines wait."""

    def write(self, line: str) -> bool:
        """Write a line with its end; False where it is lost, because too many wait.

        Raises:
            OSError: it cannot be written: nobody reads any more, or the disk is full.
        """
        if self._descriptor is None:
            self._stream.write(line)
            self._stream.flush()
            return True
        data = line.encode(errors="backslashreplace")
        with self._lock:
            if self._writer is None and len(data) <= _AT_ONCE and self._poll.poll(0):
                data = data[os.write(self._descriptor, data) :]
                if not data:
                    return True
            return self._held + len(data) <= MOST_WAITING and self._keep(data)

    def close(self) -> None:
        """The process ends: wait a moment for what waits."""
        writer = self._writer
        if writer is not None:
            writer.join(_END_SECONDS)

    def _keep(self, data: bytes) -> bool:
        if self._writer is None:
            writer = threading.Thread(target=self._write_waiting, name="log", daemon=True)
            try:
                writer.start()
            except RuntimeError:  # the system gives no thread now
                return False
            self._writer = writer
        self._waiting.append(data)
        self._held += len(data)
        return True

    def _write_waiting(self) -> None:
        """Write what waits, until nothing does. In a thread of its own."""
        assert self._descriptor is not None
        while True:
            with self._lock:
                if not self._waiting:
                    self._writer = None
                    return
                data = self._waiting.popleft()
                self._held -= len(data)
            with contextlib.suppress(OSError):  # nobody reads any more
                while data:
                    self._poll.poll()
                    data = data[os.write(self._descriptor, data[:_AT_ONCE]) :]


def _of_a_reader(stream: TextIO) -> int | None:
    """A descriptor of our own, if it is a pipe or a socket: somebody reads at its other end."""
    try:
        descriptor = stream.fileno()
        mode = os.fstat(descriptor).st_mode
    except (OSError, ValueError, AttributeError):  # it only looks like a file
        return None
    return os.dup(descriptor) if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) else None
