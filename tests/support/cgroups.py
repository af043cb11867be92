"""Real control groups of pods, made where a kubelet with the cgroupfs driver makes them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import need

if TYPE_CHECKING:
    from collections.abc import Iterator

MOUNT = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def pod_cgroup(uid: str, container: str) -> Iterator[tuple[Path, ...]]:
    """``cgroup.procs`` of ``kubepods/burstable/pod<uid>/<container>`` in every hierarchy.

    They lie below the groups of this machine's first process; empty them before the end.
    """
    with contextlib.ExitStack() as stack:
        yield tuple(
            stack.enter_context(group(top / "kubepods" / "burstable" / f"pod{uid}" / container))
            for top in hierarchies()
        )


@contextlib.contextmanager
def group(path: Path) -> Iterator[Path]:
    """``cgroup.procs`` of the control group at ``path``; it and what is missing above is made."""
    made: list[Path] = []
    try:
        for folder in reversed([path, *path.parents]):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
                _give_processors(folder)
    except OSError as error:
        need.missing(f"a writable hierarchy of control groups ({error})")
    try:
        yield path / "cgroup.procs"
    finally:
        for folder in reversed(made):
            folder.rmdir()


def hierarchies() -> tuple[Path, ...]:
    """The group of this machine's first process in every hierarchy, as mounted here."""
    found = []
    for line in Path("/proc/1/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers:
            mounts = [MOUNT / controllers.removeprefix("name=")]
        else:
            mounts = [MOUNT / "unified", MOUNT]
        name = path.strip("/").removesuffix("init.scope").strip("/")
        for mount in mounts:
            if (mount / name / "cgroup.procs").exists():
                found.append(mount / name)
                break
        else:
            need.missing(f"the mounted hierarchy {controllers or 'of cgroup v2'!r}")
    return tuple(found)


def _give_processors(folder: Path) -> None:
    """A new group of ``cpuset`` in cgroup v1 takes no process before it has processors."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if (folder / name).exists() and not (folder / name).read_text().strip():
            (folder / name).write_text((folder.parent / name).read_text())
