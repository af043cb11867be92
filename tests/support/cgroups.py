"""Real control groups: of pods, where a kubelet with the cgroupfs driver makes them; of memory."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

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
                folder.mkdir(exist_ok=folder != path)  # another test may make the same parents
                made.append(folder)
                _give_processors(folder)
    except OSError as error:
        need.missing(f"a writable hierarchy of control groups ({error})")
    try:
        yield path / "cgroup.procs"
    finally:
        for folder in reversed(made):
            try:
                folder.rmdir()
            except OSError:  # another test's group may be in a parent
                if folder == path:
                    raise


_JOIN = 'echo $$ > "$0" && exec "$@"'
_number = itertools.count()


class MemoryGroup:
    """A control group whose processes are killed when they use more memory than ``limit``."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.is_v2 = (folder / "memory.max").exists()
        (folder / ("memory.max" if self.is_v2 else "memory.limit_in_bytes")).write_text(str(limit))
        swap = folder / ("memory.swap.max" if self.is_v2 else "memory.memsw.limit_in_bytes")
        if swap.exists():
            swap.write_text("0" if self.is_v2 else str(limit))

    @property
    def prefix(self) -> tuple[str, ...]:
        """The beginning of a command that runs in the group."""
        return ("/bin/sh", "-c", _JOIN, str(self.folder / "cgroup.procs"))

    def kills(self) -> int:
        """How often the kernel killed one of its processes for want of memory."""
        name = "memory.events" if self.is_v2 else "memory.oom_control"
        for line in (self.folder / name).read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        raise AssertionError(name)

    def peak(self) -> int | None:
        """The most bytes that it used; None if the kernel does not say (v2 before 5.19)."""
        file = self.folder / ("memory.peak" if self.is_v2 else "memory.max_usage_in_bytes")
        return int(file.read_text()) if file.exists() else None


@contextlib.contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """A group below our own; fails, and does not skip, if this machine gives none."""
    try:
        folder = _memory_parent() / f"sds-test-{os.getpid()}-{next(_number)}"
        folder.mkdir()
        group = MemoryGroup(folder, limit)
    except OSError as error:
        pytest.fail(
            f"no control group with a bound on memory can be made ({error}): run this as root, "
            "where /sys/fs/cgroup can be written and has the controller of memory"
        )
    try:
        yield group
    finally:
        folder.rmdir()


def _memory_parent() -> Path:
    """The group of ours in which groups with a bound on memory can be made."""
    for line in Path("/proc/self/cgroup").read_text().split("\n"):
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return MOUNT / controllers / path.lstrip("/")
        for mount in (MOUNT, MOUNT / "unified"):
            parent = mount / path.lstrip("/")
            available = parent / "cgroup.controllers"
            if not controllers and available.exists() and "memory" in available.read_text().split():
                _give_memory(parent)
                return parent
    raise OSError(errno.ENODEV, "no hierarchy has the controller of memory")


def _give_memory(parent: Path) -> None:
    """Let groups below have the controller: a group with processes cannot (cgroups(7))."""
    switch = parent / "cgroup.subtree_control"
    if "memory" in switch.read_text().split():
        return
    try:
        switch.write_text("+memory")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # The name under which systemd does the same; what finds pods knows it.
        inner = parent / "init.scope"
        inner.mkdir(exist_ok=True)
        for process in (parent / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (inner / "cgroup.procs").write_text(process)
        switch.write_text("+memory")


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
