"""Real control groups with the names of pods, made below this process's own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import need

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def pod_cgroup(uid: str, container: str) -> Iterator[Path]:
    """``cgroup.procs`` of ``kubepods/burstable/pod<uid>/<container>``; empty it before the end.

    As the cgroupfs driver lays it out, in the v2 hierarchy (of a hybrid or a pure machine).
    """
    top = _own()
    folders = [top / "kubepods"]
    folders += [folders[0] / "burstable", folders[0] / "burstable" / f"pod{uid}"]
    folders.append(folders[-1] / container)
    made = []
    try:
        for folder in folders:
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
    except OSError as error:
        need.missing(f"a writable hierarchy of control groups ({error})")
    try:
        yield folders[-1] / "cgroup.procs"
    finally:
        for folder in reversed(made):
            folder.rmdir()


def _own() -> Path:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            for mount in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
                own = mount / line.removeprefix("0::").strip("/")
                if (own / "cgroup.procs").exists():
                    return own
    need.missing("cgroup v2")
    raise AssertionError
