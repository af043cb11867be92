"""Computes the specification that containerd makes of a container, from manifest and image.

Owns :func:`predicted_containers` and :func:`predicted_sandbox`. Invariants: a computed
specification passes through the same canonical form as one that a runtime reports, so one test
compares both; everything that depends on the node is in :class:`NodeProfile`.

Source: containerd 1.6 ``pkg/cri/server`` (``container_create_linux.go``, ``sandbox_run_linux.go``),
``pkg/cri/opts/spec_linux.go``, ``oci/spec.go``, ``oci/spec_opts.go``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import Field

from sds.settings.field_types import Settings
from sds.workload.cri.canonical import CanonicalContainer, Surroundings, canonical
from sds.workload.cri.kubelet import POD_UID, AskedMount, asked, cannot

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sds.workload.cri.image import ImageContent
    from sds.workload.cri.kubelet import AskedContainer

_SANDBOX: Final = "0" * 64
_CONTAINER: Final = "1" * 64
_PID: Final = 1
_NETWORK: Final = f"/var/run/netns/cni-{POD_UID}"
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES: Final = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
]
_OCI_MASKED: Final = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/proc/scsi",
]
_OCI_READ_ONLY: Final = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
_SECURITY: Final = frozenset(
    [
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "readOnlyRootFilesystem",
        "allowPrivilegeEscalation",
        "capabilities",
        "seccompProfile",
        "fsGroup",
        "supplementalGroups",
        "fsGroupChangePolicy",
    ]
)
_DEVICES: Final = [{"allow": False, "access": "rwm"}]


class NodeProfile(Settings):
    """What nodes add to every pod; `sds policy pod --uid … --lines` on a node shows it."""

    sandbox_image: str = Field(
        default="registry.k8s.io/pause:3.8", description="As in containerd's configuration."
    )
    masked_paths: tuple[str, ...] = Field(
        default=(
            *("/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys"),
            *("/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats"),
            *("/proc/sched_debug", "/proc/scsi", "/sys/firmware"),
            "/sys/devices/virtual/powercap",
        ),
        description="Of Kubernetes 1.34; kubelets add thermal_throttle of each processor.",
    )
    readonly_paths: tuple[str, ...] = tuple(_OCI_READ_ONLY)
    cgroup_namespace: bool = Field(default=True, description="True with cgroup v2.")
    apparmor: str = Field(default="", description="The default profile; empty without AppArmor.")
    seccomp_runtime_default: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = Field(
        default="", description="Digest on the line `seccomp` of a pod with RuntimeDefault."
    )


def predicted_containers(
    spec: Mapping[str, Any],
    images: Mapping[str, ImageContent],
    node: NodeProfile,
    *,
    kubelet: str = "/var/lib/kubelet",
) -> dict[str, CanonicalContainer]:
    """Compute each container of a Pod in canonical form, by its name.

    Args:
        spec: the ``spec`` of the Pod as the API server admitted it, decoded.
        images: the images, by the names that the manifest uses.
        node: what the nodes add.
        kubelet: the kubelet's directory.

    Raises:
        ConfigurationError: manifest, images and profile do not determine it.
    """
    around = Surroundings(
        pod_uid=POD_UID, sandbox_id=_SANDBOX, sandbox_pid=_PID, kubelet=kubelet, runtime=("/r",)
    )
    found = {}
    for each in asked(spec, kubelet=kubelet):
        if each.image not in images:
            cannot(f"{each.name}: the image {each.image} is not given (--image)")
        image = images[each.image]
        made = _container(each, image, spec, node)
        form = canonical(each.name, image.digest, made, around, container_id=_CONTAINER)
        found[each.name] = _with_seccomp(form, each.security, node)
    return found


def predicted_sandbox(
    spec: Mapping[str, Any], image: ImageContent, node: NodeProfile
) -> CanonicalContainer:
    """Compute the sandbox of a Pod in canonical form, from the same arguments."""
    shared = spec.get("securityContext") or {}
    config = image.config
    kinds = [
        kind
        for kind, absent in (
            ("pid", spec.get("hostPID")),
            ("ipc", False),
            ("uts", spec.get("hostNetwork")),
            ("mount", False),
            ("network", spec.get("hostNetwork")),
        )
        if not absent
    ]
    user = _user(shared, image, sandbox=True)
    groups = {*(shared.get("supplementalGroups") or ()), *_fs_group(shared)}
    if shared.get("runAsUser") is not None or config.get("User"):
        user["additionalGids"] = [user["gid"]]  # containerd sets the user last; no others stay
    elif groups:
        user["additionalGids"] = sorted(groups)
    made = {
        "process": {
            "user": user,
            "args": [*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ())],
            "env": list(config.get("Env") or ()),
            "cwd": config.get("WorkingDir") or "/",
            "capabilities": _sets(_CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "mounts": [
            *_default_mounts(shm=True),
            _bind("/dev/shm", f"{_SANDBOXES}/shm", "rbind", "ro"),  # noqa: S108  a destination
            _bind("/etc/resolv.conf", f"{_SANDBOXES}/resolv.conf", "rbind", "ro"),
        ],
        "annotations": {},
        "linux": {
            "cgroupsPath": _SANDBOX,
            "namespaces": [
                {"type": kind, "path": _NETWORK} if kind == "network" else {"type": kind}
                for kind in kinds
            ],
            "maskedPaths": _OCI_MASKED,
            "readonlyPaths": _OCI_READ_ONLY,
            "resources": {"devices": _DEVICES},
        },
    }
    around = Surroundings(pod_uid=POD_UID, sandbox_id=_SANDBOX, sandbox_pid=0, runtime=("/r",))
    form = canonical("", node.sandbox_image, made, around, container_id=_SANDBOX)
    return _with_seccomp(form, shared, node)


_SANDBOXES: Final = f"/r/io.containerd.grpc.v1.cri/sandboxes/{_SANDBOX}"


def _container(
    each: AskedContainer, image: ImageContent, spec: Mapping[str, Any], node: NodeProfile
) -> dict[str, Any]:
    security, config = each.security, image.config
    if more := sorted(key for key in set(security) - _SECURITY if security[key]):
        cannot(f"{each.name}: the manifest does not say what securityContext.{more[0]} makes of it")
    command = list(each.command) or list(config.get("Entrypoint") or ())
    args = list(each.args) or ([] if each.command else list(config.get("Cmd") or ()))
    shared = spec.get("hostPID") or spec.get("shareProcessNamespace")
    namespaces = [
        {"type": "pid", "path": f"/proc/{_PID}/ns/pid"} if shared else {"type": "pid"},
        {"type": "ipc", "path": f"/proc/{_PID}/ns/ipc"},
        {"type": "uts", "path": f"/proc/{_PID}/ns/uts"},
        {"type": "mount"},
        {"type": "network", "path": f"/proc/{_PID}/ns/net"},
        *([{"type": "cgroup"}] if node.cgroup_namespace else []),
    ]
    return {
        "process": {
            "user": _user_with_groups(security, image),
            "args": [*command, *args],
            "env": _environment(each, config),
            "cwd": each.working_dir or config.get("WorkingDir") or "/",
            "capabilities": _sets(_capabilities(security, each.name)),
            "noNewPrivileges": security.get("allowPrivilegeEscalation") is False,
            "apparmorProfile": node.apparmor,
        },
        "root": {"path": "rootfs", "readonly": security.get("readOnlyRootFilesystem") is True},
        "mounts": _mounts(each, image),
        "annotations": {},
        "linux": {
            "cgroupsPath": _CONTAINER,
            "namespaces": namespaces,
            "maskedPaths": list(node.masked_paths),
            "readonlyPaths": list(node.readonly_paths),
            "resources": {"devices": _DEVICES},
        },
    }


def _environment(each: AskedContainer, config: Mapping[str, Any]) -> list[str]:
    """Join the variables as ``oci.WithEnv`` does: a known variable keeps its place."""
    found = [_PATH, "HOSTNAME=h"]
    places = {entry.partition("=")[0]: number for number, entry in enumerate(found)}
    named = [f"{name}={value}" for name, value in each.environment]
    for entry in (*(config.get("Env") or ()), *named):
        name = entry.partition("=")[0]
        if name in places:
            found[places[name]] = entry
        else:
            found.append(entry)
    return found


def _default_mounts(*, shm: bool) -> Iterator[dict[str, Any]]:
    devpts = "nosuid noexec newinstance ptmxmode=0666 mode=0620 gid=5"
    for destination, kind, source, options in (
        ("/proc", "proc", "proc", "nosuid noexec nodev"),
        ("/dev", "tmpfs", "tmpfs", "nosuid strictatime mode=755 size=65536k"),
        ("/dev/pts", "devpts", "devpts", devpts),
        ("/dev/shm", "tmpfs", "shm", "nosuid noexec nodev mode=1777 size=65536k"),  # noqa: S108
        ("/dev/mqueue", "mqueue", "mqueue", "nosuid noexec nodev"),
        ("/sys", "sysfs", "sysfs", "nosuid noexec nodev ro"),
        ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid noexec nodev relatime ro"),
    ):
        if destination != ("/sys/fs/cgroup" if shm else "/dev/shm"):  # noqa: S108
            yield {
                "destination": destination,
                "type": kind,
                "source": source,
                "options": options.split(),
            }


def _mounts(each: AskedContainer, image: ImageContent) -> list[dict[str, Any]]:
    """Order the mounts as ``WithMounts`` does: by depth, those of the CRI first."""
    read_only = each.security.get("readOnlyRootFilesystem") is True
    mounts = list(each.mounts)
    taken = {_clean(mount.destination) for mount in mounts}
    own = f"/r/io.containerd.grpc.v1.cri/containers/{_CONTAINER}/volumes/{'0' * 64}"
    for destination, source, sealed in (
        *((volume, own, False) for volume in sorted(image.config.get("Volumes") or ())),
        ("/etc/hostname", f"{_SANDBOXES}/hostname", read_only),
        ("/etc/hosts", f"{_SANDBOXES}/hosts", read_only),
        ("/etc/resolv.conf", f"{_SANDBOXES}/resolv.conf", read_only),
        ("/dev/shm", f"{_SANDBOXES}/shm", False),  # noqa: S108  a destination
    ):
        if _clean(destination) not in taken:
            mounts.append(AskedMount(destination=destination, source=source, read_only=sealed))
    if len(image.config.get("Volumes") or ()) > 1:
        cannot(f"{each.name}: its image has several volumes, and the runtime orders them at random")
    mounts.sort(key=lambda mount: _clean(mount.destination).count("/"))
    taken = {_clean(mount.destination) for mount in mounts}
    found = [
        mount
        for mount in _default_mounts(shm=False)
        if mount["destination"] not in taken
        and not ("/dev" in taken and mount["destination"].startswith("/dev/"))
    ]
    for mount in mounts:
        mode = "ro" if mount.read_only else "rw"
        found.append(_bind(mount.destination, mount.source, "rbind", "rprivate", mode))
    return found


def _bind(destination: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": "bind", "source": source, "options": [*options]}


def _clean(path: str) -> str:
    return re.sub(r"/+", "/", path).rstrip("/") or "/"


def _capabilities(security: Mapping[str, Any], name: str) -> list[str]:
    wanted = security.get("capabilities") or {}
    add, drop = ([str(each).upper() for each in wanted.get(key) or ()] for key in ("add", "drop"))
    if "ALL" in add:
        cannot(f"{name}: which capabilities ALL adds depends on the node's kernel")
    found = set() if "ALL" in drop else set(_CAPABILITIES)
    return sorted((found | set(add)) - set(drop))


def _sets(capabilities: Sequence[str]) -> dict[str, list[str]]:
    names = [f"CAP_{each.removeprefix('CAP_')}" for each in capabilities]
    return dict.fromkeys(("bounding", "effective", "permitted"), names)


def _user(security: Mapping[str, Any], image: ImageContent, *, sandbox: bool) -> dict[str, Any]:
    """Find user and group as ``oci.WithUser`` does: names, and a user's group, are in the image.

    For containers, the kubelet passes the image's user on as if the manifest named it, and drops
    the image's group (``determineEffectiveSecurityContext``); the sandbox's image keeps both.
    """
    user, group = security.get("runAsUser"), security.get("runAsGroup")
    text = str(image.config.get("User") or "") if user is None else str(user)
    if not sandbox:
        text = text.partition(":")[0] or "0"
    if group is not None:
        if not text:
            cannot("runAsGroup without runAsUser")
        text = f"{text.partition(':')[0]}:{group}"
    name, colon, second = text.partition(":")
    if not name:
        return {"uid": 0, "gid": 0}
    entry = _entry(image.passwd, name)
    if not name.isdecimal() and entry is None:
        cannot(f"the user {name!r} is not in the image's /etc/passwd")
    uid = int(name) if name.isdecimal() else int((entry or ())[2])
    gid = 0 if entry is None else int(entry[3])
    if colon:
        named = _entry(image.group, second)
        if not second.isdecimal() and named is None:
            cannot(f"the group {second!r} is not in the image's /etc/group")
        gid = int(second) if second.isdecimal() else int((named or ())[2])
    return {"uid": uid, "gid": gid}


def _entry(table: tuple[tuple[str, ...], ...], name: str) -> tuple[str, ...] | None:
    """Return the line of a user or group, by its name or number."""
    place = 2 if name.isdecimal() else 0
    for line in table:
        if len(line) > place and line[place] == name:
            return line
    return None


def _user_with_groups(security: Mapping[str, Any], image: ImageContent) -> dict[str, Any]:
    user = _user(security, image, sandbox=False)
    entry = _entry(image.passwd, str(user["uid"]))
    named = "" if entry is None else entry[0]
    groups = {user["gid"], *(security.get("supplementalGroups") or ()), *_fs_group(security)}
    for line in image.group:
        if named and len(line) > 3 and line[0] != named and named in line[3].split(","):  # noqa: PLR2004  group(5)
            groups.add(int(line[2]))
    return {**user, "additionalGids": sorted(groups)}


def _fs_group(security: Mapping[str, Any]) -> tuple[int, ...]:
    group = security.get("fsGroup")
    return () if group is None else (int(group),)


def _with_seccomp(
    form: CanonicalContainer, security: Mapping[str, Any], node: NodeProfile
) -> CanonicalContainer:
    kind = (security.get("seccompProfile") or {}).get("type") or "Unconfined"
    if kind == "Unconfined":
        return form
    if kind != "RuntimeDefault" or not node.seccomp_runtime_default:
        cannot(f"the seccomp profile {kind} depends on the node (seccomp_runtime_default)")
    line = f"seccomp {node.seccomp_runtime_default}"
    lines = tuple(line if each == "seccomp none" else each for each in form.lines)
    return CanonicalContainer(lines=lines, unmeasured=form.unmeasured)
