"""Reads the control groups of processes from ``/proc``, within a bound.

Invariants: this module reads only files that the kernel itself writes, so a read never waits for a
file system that a caller mounted (``exe``, ``root``, ``cwd``, ``cmdline`` and ``environ`` can, so
only the looker reads them); whatever names a caller gives its control groups, reading them raises
only our errors.

Source: proc(5), with the mount option ``hidepid``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sds.errors import CgroupError, ConfigurationError
from sds.untrusted_input import words_of
from sds.workload.cgroup import MOST_CHARACTERS, PodRoots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sds.workload.peer import Peer

_IN_A_POD: Final = "KUBERNETES_SERVICE_HOST"
"""The environment variable that Kubernetes sets in every container."""


def read_cgroup(peer: Peer) -> str:
    """Read the caller's ``/proc/PID/cgroup``; call :meth:`Peer.check` afterwards.

    Bytes that are not UTF-8 (any byte may be in a control group's name) are replaced.

    Raises:
        PeerGoneError: the process has ended.
        CgroupError: the file cannot be read.
    """
    try:
        return read_cgroup_of(peer.pid)
    except OSError as error:
        peer.check()
        raise CgroupError(
            f"/proc/{peer.pid}/cgroup cannot be read: {error.strerror}",
            reason="cgroup_unreadable",
            advice="if /proc is mounted with hidepid, give the agent the group of its option "
            "gid=, or CAP_SYS_PTRACE",
        ) from error


def read_cgroup_of(pid: int) -> str:
    """Read the ``/proc/PID/cgroup`` of a process that is not a caller.

    Raises:
        OSError: there is no such process, or it cannot be read.
    """
    with open(f"/proc/{pid}/cgroup", "rb", buffering=0) as file:  # noqa: PTH123  no buffer
        text = b""
        while len(text) <= MOST_CHARACTERS and (more := file.read(MOST_CHARACTERS)):
            text += more
    return text.decode("utf-8", "replace")


def pod_roots(
    environment: Mapping[str, str],
    *,
    cgroup_root: str | None = None,
    runtime_cgroup: str | None = None,
) -> PodRoots:
    """Return where pods may be on this node, by the control groups of its first process.

    Args:
        environment: the environment of this process, which tells whether we are in a pod.
        cgroup_root: the kubelet's ``--cgroup-root``; None for the usual ones.
        runtime_cgroup: the runtime's own control group; None for the usual services.

    Raises:
        ConfigurationError: the first process is not visible.
    """
    try:
        return PodRoots.of(
            read_cgroup_of(1),
            inside=bool(environment.get(_IN_A_POD)),
            cgroup_root=cgroup_root,
            runtime_cgroup=runtime_cgroup,
        )
    except (OSError, CgroupError) as error:
        raise ConfigurationError(
            f"the kubelet's control groups cannot be found: /proc/1/cgroup: {words_of(error)}",
            advice="run the agent in the node's PID namespace (hostPID: true), and with a /proc "
            "that shows its first process (hidepid)",
        ) from error
