"""A file system with one runtime register: ``python -m tests.support.measurement_registers DIR``.

The file ``rtmr3:sha384`` behaves as drivers/virt/coco/guest/tsm-mr.c: a read gives the 48 bytes of
the register, a write of exactly 48 bytes at offset 0 extends it, and any other is EINVAL.
"""

from __future__ import annotations

import errno
import stat
import sys
import time
from typing import Any

import mfusepy as fuse

from tests.support.tdx_guest import SimulatedRegister

NAME = "rtmr3:sha384"


class RegisterFileSystem(fuse.Operations):  # type: ignore[misc]  # the library has no types
    """The directory ``measurements``."""

    use_ns = True

    def __init__(self) -> None:
        self.register = SimulatedRegister()

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        now = int(time.time() * 1e9)
        times = {"st_ctime": now, "st_mtime": now, "st_atime": now}
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, **times}
        if path == f"/{NAME}":
            return {"st_mode": stat.S_IFREG | 0o644, "st_nlink": 1, "st_size": 48, **times}
        raise fuse.FuseOSError(errno.ENOENT)

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", NAME]

    def open(self, path: str, flags: int) -> int:
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return self.register.read()[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        if offset != 0 or len(data) != len(self.register.value):
            raise fuse.FuseOSError(errno.EINVAL)
        self.register.extend(data)
        return len(data)


if __name__ == "__main__":
    fuse.FUSE(
        RegisterFileSystem(),
        sys.argv[1],
        foreground=True,
        nothreads=True,
        direct_io=True,
        attr_timeout=0,
        entry_timeout=0,
    )
