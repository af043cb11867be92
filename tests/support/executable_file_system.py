"""A FUSE file system of one executable: ``executable_file_system.py DIR FILE MODE``.

It serves the content of FILE as ``DIR/x``, to everybody. The file MODE says how it behaves: ``ok``,
``eio`` (its attributes cannot be read) or ``hang`` (opening it, and its attributes, wait).
"""

from __future__ import annotations

import errno
import stat
import sys
import time
from pathlib import Path
from typing import Any

import mfusepy as fuse


class ExecutableFileSystem(fuse.Operations):  # type: ignore[misc]  # the library has no types
    use_ns = True

    def __init__(self, content: bytes, mode: Path) -> None:
        self.content = content
        self.mode = mode

    def _behave(self, operation: str) -> None:
        if self.mode.read_text() == "eio" and operation == "getattr":
            raise fuse.FuseOSError(errno.EIO)
        while self.mode.read_text() == "hang":
            time.sleep(0.05)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        del fh
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != "/x":
            raise fuse.FuseOSError(errno.ENOENT)
        self._behave("getattr")
        return {"st_mode": stat.S_IFREG | 0o755, "st_nlink": 1, "st_size": len(self.content)}

    def readdir(self, path: str, fh: int) -> list[str]:
        del path, fh
        return [".", "..", "x"]

    def open(self, path: str, flags: int) -> int:
        del path, flags
        self._behave("open")
        return 7

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        del path, fh
        return self.content[offset : offset + size]


if __name__ == "__main__":
    fuse.FUSE(
        ExecutableFileSystem(Path(sys.argv[2]).read_bytes(), Path(sys.argv[3])),
        sys.argv[1],
        foreground=True,
        allow_other=True,
        nothreads=False,
        attr_timeout=0,
        entry_timeout=0,
    )
