"""Real control groups that pose as a pod's: the kernel shows them, and none is believed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sds.errors import CgroupError
from sds.workload.proc import pod_roots, read_cgroup_of
from tests.support import need
from tests.support.cgroups import group, hierarchies, pod_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.root]

UID = "08d52ca1-d4b2-46d1-8d53-1b2c3d4e5f60"
ID = "ab" * 32
POD = f"kubepods/burstable/pod{UID}/{ID}"
SLICES = (
    "kubepods.slice/kubepods-burstable.slice/"
    f"kubepods-burstable-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope"
)
MISMATCHED = f"kubepods-pod{UID.replace('-', '_')}.slice:cri-containerd:{ID}"
SEPARATORS = ("\r", "\u2028")


@pytest.fixture(autouse=True)
def _root() -> None:
    need.root()


@pytest.fixture(scope="module")
def process() -> Iterator[int]:
    """A process that can be moved about."""
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child.pid
        child.kill()


@contextlib.contextmanager
def moved(process: int, procs: Sequence[Path]) -> Iterator[None]:
    """Let the process be in these groups."""
    home = [top / "cgroup.procs" for top in hierarchies()]
    try:
        for each in procs:
            each.write_text(str(process))
        yield
    finally:
        for each in home:
            each.write_text(str(process))


def found(process: int, path: str, tops: Sequence[Path]) -> object:
    """What is found of a process that is in the group ``path`` below each of these."""
    with contextlib.ExitStack() as stack:
        procs = [stack.enter_context(group(Path(f"{top}/{path}"))) for top in tops]
        stack.enter_context(moved(process, procs))
        return pod_roots({}).find(read_cgroup_of(process))


@pytest.mark.parametrize(
    "path",
    [
        f"lxc.payload.guest/{POD}",
        f"lxc/guest/{SLICES}",
        f"students/alice/pod{UID}/{ID}",
        f"user.slice/user-1000.slice/user@1000.service/{POD}",
        f"user.slice/user-1000.slice/user@1000.service/{SLICES}",
        f"user.slice/user-1000.slice/user@1000.service/{MISMATCHED}",
        f"user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/{POD}",
        f"system.slice/docker-{ID}.scope/{POD}",
        f"docker/{ID}/{SLICES}",
        f"machine.slice/machine-guest.scope/payload/{SLICES}",
    ],
)
def test_a_group_that_is_named_like_a_pods(process: int, path: str) -> None:
    with pytest.raises(CgroupError, match="has a pod's name"):
        found(process, path, hierarchies())


@pytest.mark.parametrize("separator", SEPARATORS)
def test_a_group_whose_name_ends_a_line(process: int, separator: str) -> None:
    """Each hierarchy gets a second, forged line, for a parser that takes this for a line's end."""
    for line in read_cgroup_of(process).split("\n"):
        if line:
            name = ":".join(line.split(":", 2)[:2])
            with pytest.raises(CgroupError, match="has a pod's name"):
                found(process, f"user.slice/x{separator}{name}:/{POD}", hierarchies())


def test_one_hierarchy_alone_is_not_believed(process: int) -> None:
    tops = hierarchies()
    if len(tops) == 1:
        return  # there is nothing that could disagree
    for top in tops:
        with pytest.raises(CgroupError, match="a process is in one"):
            found(process, POD, [top])


def test_the_kubelets_own_are_believed(process: int) -> None:
    """The control: what all the others imitate."""
    with pod_cgroup(UID, ID) as procs, moved(process, procs):
        pod = pod_roots({}).find(read_cgroup_of(process))
        assert pod is not None
        assert (pod.pod_uid, pod.container_id) == (UID, ID)
