"""A mount of the file system that behaves as configfs-tsm, and a guest that has it in its place."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support import need

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_SECONDS = 20.0
# In a mount namespace of its own: /sys itself takes no directories, and no other process sees it.
IN_PLACE = """
mount -t tmpfs tmpfs /sys/kernel
mkdir -p /sys/kernel/config/tsm/report
mount --bind "$0" /sys/kernel/config/tsm/report
exec "$@"
"""


class Mounted:
    """The file system in a process of its own, and how to tell it what to do."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder = folder
        self._process = process

    def told(self, **behaviour: Any) -> int:
        """Set its behaviour; the number of directories that are there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(behaviour) + "\n")
        self._process.stdin.flush()
        left: int = json.loads(self._process.stdout.readline())["left"]
        return left

    def guest(self) -> list[str | Path]:
        """The command line before that of a program for which this machine is such a guest."""
        need.root()
        return [need.tool("unshare"), "--mount", "sh", "-ec", IN_PLACE, self.folder]


@contextlib.contextmanager
def mounted_reports(folder: Path) -> Iterator[Mounted]:
    """The file system at a folder, while the block runs."""
    if not Path("/dev/fuse").exists() or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        need.missing("/dev/fuse")
    need.tool("fusermount3")
    folder.mkdir(exist_ok=True)
    # A file, not a pipe that nobody reads: a full one would stop the file system.
    said = folder.with_suffix(".log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.tsm_file_system", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        cwd=need.ROOT,
    )
    try:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not os.path.ismount(folder):
            if process.poll() is not None:
                said.seek(0)
                need.missing(f"a mount of FUSE ({said.read().strip()[-200:]})")
            assert time.monotonic() < deadline, "the file system is not mounted"
            time.sleep(0.02)
        yield Mounted(folder, process)
    finally:
        subprocess.run(["fusermount3", "-u", str(folder)], check=False, capture_output=True)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.communicate()
        said.close()
