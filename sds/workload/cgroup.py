"""Which pod and container a process belongs to, read from the text of its ``/proc/PID/cgroup``.

Owns the forms of control-group paths: cgroup v1, v2 and hybrid; the cgroupfs and systemd drivers;
containerd, CRI-O, Docker and Podman. Invariant: the *outermost* pod of a path counts, because a
process that may create control groups can nest any name below its own; and a pod is believed only
where no part of the path above it can be made by an unprivileged user (a login session, a
delegated service or scope).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sds.errors import CgroupError

_UUID: Final = (
    r"[0-9a-f]{8}(?P<dash>[-_])[0-9a-f]{4}(?P=dash)[0-9a-f]{4}(?P=dash)[0-9a-f]{4}(?P=dash)"
    r"[0-9a-f]{12}"
)
# Static pods: the kubelet uses the MD5 of the manifest as UID, 32 digits without dashes.
_POD_UID: Final = rf"(?P<uid>{_UUID}|[0-9a-f]{{32}})"
# cgroupfs driver: .../kubepods/burstable/pod<uid>/...
_CGROUPFS_POD: Final = re.compile(rf"pod{_POD_UID}", re.ASCII)
# systemd driver: kubepods-burstable-pod<uid with underscores>.slice ('kubelet-' ahead in kind).
# containerd told to use cgroupfs on a systemd node makes one directory of 'slice:prefix:id'.
_SYSTEMD_POD: Final = re.compile(
    rf"(?:[a-z0-9_.]+-)*kubepods(?:-besteffort|-burstable)?-pod{_POD_UID}\.slice"
    r"(?::(?:cri-containerd|crio|docker):(?P<container>[0-9a-f]{64}))?",
    re.ASCII,
)
_CONTAINER: Final = re.compile(
    r"(?:(?:cri-containerd|crio|docker|libpod)-)?(?P<container>[0-9a-f]{64})(?:\.scope)?", re.ASCII
)
# Run by root on a node; nobody else can make control groups below them.
_RUNTIME_SERVICES: Final = frozenset(
    {"containerd.service", "crio.service", "docker.service", "kubelet.service"}
)
_DELETED: Final = " (deleted)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCgroup:
    """The pod and, where the path tells it, the container of a process.

    Attributes:
        pod_uid: the pod's UID as the kubelet writes it: with dashes, or 32 hexadecimal digits for
            a static pod.
        container_id: 64 hexadecimal digits, or None (the sandbox's own processes, other runtimes).
    """

    pod_uid: str
    container_id: str | None


def parse_cgroup(text: str) -> PodCgroup | None:
    """The pod in the content of a ``/proc/PID/cgroup``, or None for a process outside pods.

    Every line is ``hierarchy:controllers:path`` (cgroups(7)). Lines without a pod are ignored:
    on hybrid nodes some hierarchies are not the kubelet's.

    Raises:
        CgroupError: two lines name different pods or containers, or a line is not of this form.
    """
    found: set[PodCgroup] = set()
    for line in text.splitlines():
        if not line:
            continue
        hierarchy, colon, rest = line.partition(":")
        _controllers, second, path = rest.partition(":")
        if not (colon and second and hierarchy.isdecimal() and path.startswith("/")):
            raise CgroupError(f"a line of the cgroup file is malformed: {line[:200]!r}")
        if (pod := _pod_of_path(path)) is not None:
            found.add(pod)
    pods = {pod.pod_uid for pod in found}
    containers = {pod.container_id for pod in found if pod.container_id is not None}
    if len(pods) > 1 or len(containers) > 1:
        raise CgroupError(
            f"the control groups name {len(pods)} pods and {len(containers)} containers; "
            "a process is in one",
            advice="look at /proc/PID/cgroup of the caller: something moved it by hand",
        )
    if not pods:
        return None
    return PodCgroup(pod_uid=pods.pop(), container_id=next(iter(containers), None))


def _pod_of_path(path: str) -> PodCgroup | None:
    if path.endswith(_DELETED):
        return None  # the control group is gone, and so is every live process in it
    segments = path.strip("/").split("/")
    for index, segment in enumerate(segments):
        match = _CGROUPFS_POD.fullmatch(segment) or _SYSTEMD_POD.fullmatch(segment)
        if match is not None:
            container = match.groupdict().get("container")
            if container is None and index + 1 < len(segments):
                inner = _CONTAINER.fullmatch(segments[index + 1])
                container = inner["container"] if inner else None
            return PodCgroup(pod_uid=match["uid"].replace("_", "-"), container_id=container)
        if _made_by_anyone(segment):
            return None
    return None


def _made_by_anyone(segment: str) -> bool:
    """Whether control groups below this one can be made by others than root.

    systemd delegates ``user@.service`` and any unit with ``Delegate=`` to its user.
    """
    if segment in {"user.slice", "machine.slice"}:
        return True
    return segment.endswith((".service", ".scope")) and segment not in _RUNTIME_SERVICES
