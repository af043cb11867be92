"""Whose share a connection counts against: a pod's, or a user's outside pods.

Invariant: every connection counts against somebody; if the pod cannot be found out, it is the user.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sds.errors import CgroupError
from sds.workload.proc import read_cgroup, read_cgroup_of

if TYPE_CHECKING:
    from sds.workload.cgroup import PodRoots
    from sds.workload.peer import Peer


def owner_of(peer: Peer, roots: PodRoots | None) -> str:
    """Return whose budget this caller counts against: a pod's, or a user's outside pods.

    Args:
        peer: the caller.
        roots: where pods may be; None if nobody asks for pods here.

    Raises:
        PeerGoneError: the process has ended.
    """
    if roots is not None:
        with contextlib.suppress(CgroupError):
            pod = roots.find(read_cgroup(peer))
            if pod is not None:
                return owner_of_pod(pod.pod_uid)
    return peer.owner


def pod_of(pid: int, roots: PodRoots | None) -> str:
    """Return the name of a process's pod as an owner; the empty string if it is in none.

    It also does so where nobody can tell, so it decides about nothing but limits.
    """
    if roots is not None:
        with contextlib.suppress(CgroupError, OSError):
            pod = roots.find(read_cgroup_of(pid))
            if pod is not None:
                return owner_of_pod(pod.pod_uid)
    return ""


def owner_of_pod(pod_uid: str) -> str:
    """Return the name that :func:`owner_of` gives a pod."""
    return f"pod {pod_uid}"
