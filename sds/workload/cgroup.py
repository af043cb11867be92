"""Finds a process's pod and container in the text of its ``/proc/PID/cgroup``.

Owns the forms of control-group paths: cgroup v1, v2 and hybrid; the cgroupfs and systemd drivers;
a kubelet and a runtime whose drivers differ; private cgroup namespaces; containerd, CRI-O, Docker
and Podman.

Invariants: a pod counts only directly below a directory that the kubelet or its runtime owns
(:class:`PodRoots`), never by its name alone, because every user with a delegated control group can
choose names below it; the *outermost* pod of a path counts; every hierarchy that the kubelet
manages must name the same pod and container; a path that looks like a pod's but is elsewhere is
an error, not "outside pods"; a group's name can neither end a line of the text nor hide a group.

Sources: cgroups(7), cgroup_namespaces(7); Kubernetes ``pkg/kubelet/cm/cgroup_manager_linux.go``
(``ToSystemd``, ``ToCgroupfs``); containerd ``internal/cri/server/helpers.go``
(``getCgroupsPath``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.errors import CgroupError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_UUID: Final = (
    r"[0-9a-f]{8}(?P<dash>[-_])[0-9a-f]{4}(?P=dash)[0-9a-f]{4}(?P=dash)[0-9a-f]{4}(?P=dash)"
    r"[0-9a-f]{12}"
)
# Static pods: the kubelet uses the MD5 of the manifest as UID, 32 digits without dashes.
_POD_UID: Final = rf"(?P<uid>{_UUID}|[0-9a-f]{{32}})"
_QOS: Final = r"(?:-(?P<qos>besteffort|burstable))?"
_CGROUPFS_POD: Final = re.compile(rf"pod{_POD_UID}", re.ASCII)
_SYSTEMD_POD: Final = re.compile(
    rf"(?P<parent>(?:[a-z0-9_.]+-)*kubepods){_QOS}-pod{_POD_UID}\.slice", re.ASCII
)
# A runtime that manages control groups itself takes the slice that a kubelet with the systemd
# driver names, and makes one directory 'slice:prefix:id' beside or below its own group.
_MISMATCHED_POD: Final = re.compile(
    rf"(?:[a-z0-9_.]+-)*kubepods{_QOS}-pod{_POD_UID}\.slice"
    r":(?:cri-containerd|crio|docker):(?P<container>[0-9a-f]{64})",
    re.ASCII,
)
_CONTAINER: Final = re.compile(
    r"(?:(?:cri-containerd|crio|docker|libpod)-)?(?P<container>[0-9a-f]{64})(?:\.scope)?", re.ASCII
)
_CGROUPFS_QOS: Final = frozenset({"besteffort", "burstable"})
_DEFAULT_ROOTS: Final = ("/", "/kubelet")
"""The usual values of the kubelet's ``--cgroup-root``: its default, and that of kind."""
_RUNTIME_UNITS: Final = (
    "containerd.service",
    "crio.service",
    "docker.service",
    "k0scontroller.service",
    "k0sworker.service",
    "k3s-agent.service",
    "k3s.service",
    "kubelet.service",
    "rke2-agent.service",
    "rke2-server.service",
    "snap.microk8s.daemon-containerd.service",
    "snap.microk8s.daemon-kubelite.service",
)
_MANAGED: Final = frozenset({"cpu", "cpuacct", "cpuset", "memory", "name=systemd", "pids"})
"""The cgroup v1 controllers in which the kubelet creates pods (``allowlistControllers``)."""
_UNIFIED: Final = ""
_INIT: Final = frozenset({"init", "init.scope"})
"""The groups to which the first process moves itself (systemd; entry points of kind and k3d)."""
_UP: Final = ".."
MOST_CHARACTERS: Final = 64 << 10
"""The longest ``/proc/PID/cgroup``: a line for each hierarchy, each path at most 4096 bytes."""
_SHOWN: Final = 200

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodCgroup:
    """The pod of a process and, if the path shows it, the container.

    Attributes:
        pod_uid: the pod's UID as the kubelet writes it: with dashes, or 32 hexadecimal digits for
            a static pod.
        container_id: 64 hexadecimal digits, or None (the sandbox's own processes, other runtimes).
    """

    pod_uid: str
    container_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Path:
    """A path as the kernel shows it: up from our namespace's root, then down these names."""

    ups: int
    names: Names

    def __str__(self) -> str:
        return "/" + "/".join((*(_UP,) * self.ups, *self.names))


@dataclass(frozen=True, slots=True, kw_only=True)
class PodRoots:
    """Where on this node pods may be.

    Attributes:
        bases: hierarchy to the group under which the node's first process lives: the root of the
            node, seen from our own cgroup namespace.
        kubelet: below a base, the directories that contain only what the kubelet makes for pods,
            such as ``("kubepods",)``.
        runtime: below a base, the directories in which a runtime with another driver than the
            kubelet's makes one directory for each container.
        inside: whether we run in a pod of this kubelet. Then the directories above our own
            control group are the kubelet's, and a private cgroup namespace may hide their names.
    """

    bases: Mapping[str, _Path]
    kubelet: tuple[Names, ...]
    runtime: tuple[Names, ...]
    inside: bool

    @classmethod
    def of(
        cls,
        init: str,
        *,
        inside: bool,
        cgroup_root: str | None = None,
        runtime_cgroup: str | None = None,
    ) -> PodRoots:
        """Return the roots of the node whose first process is in the control groups ``init``.

        Args:
            init: content of ``/proc/1/cgroup`` in the node's PID namespace.
            inside: whether we run in a pod.
            cgroup_root: the kubelet's ``--cgroup-root``; None for the usual ones.
            runtime_cgroup: the runtime's own control group; None for the usual services.

        Raises:
            CgroupError: ``init`` is malformed.
        """
        roots = _DEFAULT_ROOTS if cgroup_root is None else (cgroup_root,)
        slices = ((), ("system.slice",))
        units = [("system.slice", unit) for unit in _RUNTIME_UNITS]
        return cls(
            bases={key: _without_init(path) for key, path in _lines(init)},
            kubelet=tuple(names for root in roots for names in _kubepods(_names(root))),
            runtime=(*slices, *units) if runtime_cgroup is None else _beside(runtime_cgroup),
            inside=inside,
        )

    def find(self, text: str) -> PodCgroup | None:
        """Find the pod in the content of a ``/proc/PID/cgroup``; None for a process outside pods.

        Every line is ``hierarchy:controllers:path`` (cgroups(7)).

        Raises:
            CgroupError: hierarchies disagree, a path looks like a pod's but is where no kubelet
                puts pods, or the text is malformed.
        """
        lines = list(_lines(text))
        managed = [key for key, _ in lines if _MANAGED & set(key.split(","))] or [_UNIFIED]
        found = {key: self._pod(key, path) for key, path in lines}
        pods = {pod.pod_uid for pod in found.values() if pod is not None}
        if not pods:
            return None
        containers = {pod.container_id for pod in found.values() if pod and pod.container_id}
        missing = sorted(key for key in managed if found.get(key) is None)
        if len(pods) > 1 or len(containers) > 1 or missing:
            where = f"; {', '.join(missing) or 'unified'} of none" if missing else ""
            raise CgroupError(
                f"the control groups name {len(pods)} pods and {len(containers)} containers"
                f"{where}; a process is in one",
                advice="look at /proc/PID/cgroup of the caller: something moved it by hand",
            )
        return PodCgroup(pod_uid=pods.pop(), container_id=next(iter(containers), None))

    def _pod(self, key: str, path: _Path) -> PodCgroup | None:
        base = self.bases.get(key)
        if base is None:
            raise CgroupError(f"the first process has no control group in hierarchy {key!r}")
        for root in self.kubelet:
            place = self._below(base, root, path)
            if place is not None and (pod := _kubelets(place)) is not None:
                return pod
        for root in self.runtime:
            place = self._below(base, root, path)
            if place is not None and (pod := _mismatched(place)) is not None:
                return pod
        if any(_looks_like_a_pod(name) for name in path.names):
            raise CgroupError(
                f"the control group {str(path)[:_SHOWN]!r} has a pod's name but is not directly "
                "below the kubelet's root: a user with a delegated control group can choose that "
                "name",
                reason="cgroup_not_the_kubelets",
                advice="if it is a real pod, set node.kubernetes.cgroup_root to the kubelet's "
                "--cgroup-root",
            )
        return None

    def _below(self, base: _Path, root: Names, path: _Path) -> _Place | None:
        """Return where ``path`` is below ``root``, or None if it is elsewhere."""
        top = (*base.names, *root)
        if path.ups == base.ups:
            if path.names[: len(top)] != top:
                return None
            return _Place(parent=top[-1] if top else "", hidden=0, names=path.names[len(top) :])
        # The path branches off from ours, below the base. Our cgroup namespace hides the names
        # above the branch. In a pod, the kubelet made those groups, so only their number matters.
        hidden = base.ups - path.ups - len(top)
        if not self.inside or path.ups == 0 or base.names or hidden < 0:
            return None
        return _Place(parent=None, hidden=hidden, names=path.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A place below a root.

    Attributes:
        parent: the root's last name; None if our cgroup namespace hides it.
        hidden: how many names between the root and :attr:`names` are hidden.
        names: the rest of the path.
    """

    parent: str | None
    hidden: int
    names: Names


def _kubelets(place: _Place) -> PodCgroup | None:
    """Return the pod, if the kubelet's drivers would put one here."""
    if place.hidden > 1 or not place.names:
        return None
    first, *rest = place.names
    if place.parent is None or not place.parent.endswith(".slice"):
        if (match := _CGROUPFS_POD.fullmatch(first)) is not None:
            return _with_container(match, rest)
        if first in _CGROUPFS_QOS and place.hidden == 0 and rest:
            match = _CGROUPFS_POD.fullmatch(rest[0])
            return None if match is None else _with_container(match, rest[1:])
    if place.parent is None or place.parent.endswith(".slice"):
        return _systemd_pod(place)
    return None


def _systemd_pod(place: _Place) -> PodCgroup | None:
    """Match ``[kubepods-burstable.slice/]kubepods-burstable-pod<uid>.slice/…``."""
    names = place.names
    match = _SYSTEMD_POD.fullmatch(names[0])
    if match is None and len(names) > 1 and place.hidden == 0:
        match = _SYSTEMD_POD.fullmatch(names[1])
        if match is None or names[0] != f"{match['parent']}-{match['qos']}.slice":
            return None
        names = names[1:]
    elif match is None or (match["qos"] is not None and place.hidden == 0):
        return None
    if place.parent is not None and place.parent != f"{match['parent']}.slice":
        return None
    return _with_container(match, names[1:])


def _mismatched(place: _Place) -> PodCgroup | None:
    """Return the pod, if a runtime with another driver than the kubelet's would put one here."""
    if place.hidden or not place.names:
        return None
    match = _MISMATCHED_POD.fullmatch(place.names[0])
    if match is None:
        return None
    return PodCgroup(pod_uid=match["uid"].replace("_", "-"), container_id=match["container"])


def _with_container(match: re.Match[str], rest: Sequence[str]) -> PodCgroup:
    inner = _CONTAINER.fullmatch(rest[0]) if rest else None
    return PodCgroup(
        pod_uid=match["uid"].replace("_", "-"), container_id=inner["container"] if inner else None
    )


def _looks_like_a_pod(name: str) -> bool:
    return any(form.fullmatch(name) for form in (_CGROUPFS_POD, _SYSTEMD_POD, _MISMATCHED_POD))


def _lines(text: str) -> Iterator[tuple[str, _Path]]:
    """Yield controllers and path of each line.

    Raises:
        CgroupError: a line is malformed, or the text is too long.
    """
    if len(text) > MOST_CHARACTERS:
        raise CgroupError(
            f"the cgroup file is longer than {MOST_CHARACTERS} characters",
            reason="cgroup_unreadable",
        )
    seen: set[str] = set()
    # The kernel ends lines by a line feed, the only separator that no group's name can have:
    # ``str.splitlines`` would also split at a carriage return in a name that a user chose.
    for line in text.split("\n"):
        if not line:
            continue
        hierarchy, colon, rest = line.partition(":")
        controllers, second, path = rest.partition(":")
        if not (colon and second and hierarchy.isdecimal() and path.startswith("/")):
            raise CgroupError(
                f"a line of the cgroup file is malformed: {line[:_SHOWN]!r}",
                reason="cgroup_unreadable",
            )
        if controllers in seen:
            raise CgroupError(
                f"the cgroup file names the hierarchy {controllers[:_SHOWN]!r} twice",
                reason="cgroup_unreadable",
            )
        seen.add(controllers)
        names = _names(path)
        ups = next((index for index, name in enumerate(names) if name != _UP), len(names))
        yield controllers, _Path(ups=ups, names=names[ups:])


def _names(path: str) -> Names:
    return tuple(name for name in path.split("/") if name)


def _without_init(path: _Path) -> _Path:
    if path.names and path.names[-1] in _INIT:
        return _Path(ups=path.ups, names=path.names[:-1])
    return path


def _kubepods(root: Names) -> Iterator[Names]:
    """Return the directory of all pods below this ``--cgroup-root``, for each driver."""
    names = (*root, "kubepods")
    yield names
    plain = [name.removesuffix(".slice").replace("-", "_") for name in names]
    yield tuple("-".join(plain[: index + 1]) + ".slice" for index in range(len(plain)))


def _beside(runtime_cgroup: str) -> tuple[Names, ...]:
    """Return the runtime's own group (cgroup v1) and the one that it is in (v2; runc's choice)."""
    names = _names(runtime_cgroup)
    return (names, names[:-1])
