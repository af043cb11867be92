"""Writes a container as lines that are equal for every pod of one manifest, with a digest.

Owns the canonical form. Invariants: nothing is ignored by its name alone: a part that is left out
has a value that this module checked; an unknown key is an error, because it may mean something in
another version of the runtime; strings are JSON, so no value can forge a line.

The input is the ``info`` of a verbose ``ContainerStatus`` or ``PodSandboxStatus``, with the OCI
``runtimeSpec`` in it. Its form is containerd's own. Tested: containerd 1.6 and 2.1.

Sources: OCI runtime-spec 1.1 ``config.md`` and ``config-linux.md``; containerd
``internal/cri/server/container_status.go``; Kubernetes ``pkg/kubelet/kubelet_pods.go``.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sds.errors import WorkloadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SPEC: Final = frozenset(
    {"annotations", "hostname", "linux", "mounts", "ociVersion", "process", "root", "hooks"}
)
_PROCESS: Final = frozenset(
    {
        "apparmorProfile",
        "args",
        "capabilities",
        "cwd",
        "env",
        "noNewPrivileges",
        "oomScoreAdj",
        "rlimits",
        "selinuxLabel",
        "terminal",
        "user",
    }
)
_USER: Final = frozenset({"additionalGids", "gid", "uid", "umask"})
_LINUX: Final = frozenset(
    {
        "cgroupsPath",
        "devices",
        "gidMappings",
        "maskedPaths",
        "mountLabel",
        "namespaces",
        "readonlyPaths",
        "resources",
        "rootfsPropagation",
        "seccomp",
        "sysctl",
        "uidMappings",
    }
)
_RESOURCES: Final = frozenset({"cpu", "devices", "hugepageLimits", "memory", "pids", "unified"})
_MOUNT: Final = frozenset(
    {"destination", "gidMappings", "options", "source", "type", "uidMappings"}
)
_CAPABILITIES: Final = ("ambient", "bounding", "effective", "inheritable", "permitted")
_OF_PROCESS: Final = (
    *("env ", "cwd ", "user ", "capabilities ", "noNewPrivileges ", "terminal "),
    *("apparmorProfile ", "selinuxLabel ", "rlimits "),
)
_CRI_ANNOTATIONS: Final = "io.kubernetes.cri."
_HOSTNAME: Final = re.compile(r"HOSTNAME=[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_ADDRESS: Final = r"[0-9a-f.:]{2,45}"
_CLUSTER: Final = re.compile(
    rf"KUBERNETES_SERVICE_HOST={_ADDRESS}|KUBERNETES_SERVICE_PORT(_HTTPS)?=[0-9]{{1,5}}"
    rf"|KUBERNETES_PORT(_443_TCP)?=tcp://\[?{_ADDRESS}\]?:[0-9]{{1,5}}"
    rf"|KUBERNETES_PORT_443_TCP_PROTO=tcp|KUBERNETES_PORT_443_TCP_PORT=[0-9]{{1,5}}"
    rf"|KUBERNETES_PORT_443_TCP_ADDR={_ADDRESS}",
    re.ASCII,
)
_VOLUME: Final = re.compile(
    r"volumes/kubernetes\.io~(?P<type>[a-z0-9.-]+)/(?P<name>[^/]+)(?P<rest>/.*)?"
)
_SUBPATH: Final = re.compile(
    r"volume-subpaths/(?P<name>[^/]+)/(?P<container>[^/]+)/(?P<index>[0-9]+)"
)
_TERMINATION: Final = re.compile(r"containers/(?P<container>[^/]+)/[0-9a-f]{8}")
_IMAGE_VOLUME: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TOKEN_VOLUME: Final = re.compile(r"kube-api-access-[a-z0-9]{5}")
_MADE_BY_RUNTIME: Final = {
    "/dev/shm": "shm",  # noqa: S108  the destination of a mount
    "/etc/hostname": "hostname",
    "/etc/hosts": "hosts",
    "/etc/resolv.conf": "resolv.conf",
}
_MOST_MOUNTS: Final = 1024
"""Each may be unmeasured, and every look at a caller compares those of its pod with the lists."""
_NAMESPACES: Final = {
    **{each: each for each in ("cgroup", "ipc", "pid", "time", "user", "uts")},
    "mount": "mnt",
    "network": "net",
}
"""Type of a namespace -> its name in ``/proc/PID/ns`` (namespaces(7))."""
_EMPTY: Final = "empty-dir"
"""The volumes without content that anybody gives them; labels and annotations are not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The values with which a container's are compared before they are left out.

    Attributes:
        pod_uid: the pod's UID.
        sandbox_id: the pod's sandbox.
        sandbox_pid: the sandbox's first process, whose namespaces containers join; 0 for the
            sandbox.
        kubelet: the kubelet's directory.
        runtime: the runtime's directories, for files that it makes itself.
    """

    pod_uid: str
    sandbox_id: str
    sandbox_pid: int
    kubelet: str = "/var/lib/kubelet"
    runtime: tuple[str, ...] = (
        "/var/lib/containerd",
        "/run/containerd",
        "/var/lib/rancher/k3s/agent/containerd",
        "/run/k3s/containerd",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CanonicalContainer:
    """A container in canonical form.

    Attributes:
        lines: the canonical form.
        unmeasured: volumes and host paths whose *content* is in no line.
    """

    lines: tuple[str, ...]
    unmeasured: frozenset[str]

    @property
    def digest(self) -> str:
        """Return ``sha256:…`` of the lines."""
        text = "".join(line + "\n" for line in self.lines)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def canonical(
    name: str, image: str, spec: Any, around: Surroundings, *, container_id: str
) -> CanonicalContainer:
    """Write the canonical form of one container.

    Args:
        name: the container's name in its pod; ``""`` for the sandbox.
        image: the digest of its image's configuration; for the sandbox, the image's name.
        spec: the OCI runtime specification, decoded.
        around: the values of its pod.
        container_id: the container's ID.

    Raises:
        WorkloadError: ``cri_unknown_shape``: some part does not have the expected form.
    """
    spec = _object(spec, "runtimeSpec", _SPEC)
    unmeasured: set[str] = set()
    lines = [f"container {_json(name)}", f"image {_json(image)}"]
    lines += _process(_object(spec.get("process"), "process", _PROCESS))
    root = _object(spec.get("root"), "root", frozenset({"path", "readonly"}))
    lines.append(f"root {'read-only' if root.get('readonly') is True else 'writable'}")
    mounts = _list(spec.get("mounts"), "mounts")
    if len(mounts) > _MOST_MOUNTS:
        _unknown(f"it has {len(mounts)} mounts, more than {_MOST_MOUNTS}")
    for mount in mounts:
        line, content = _mount(_object(mount, "mount", _MOUNT), around, container_id)
        lines.append(line)
        unmeasured |= content
    lines += _linux(_object(spec.get("linux"), "linux", _LINUX), around, container_id)
    lines += _annotations(_mapping(spec.get("annotations"), "annotations"), name, around)
    lines += [f"hooks {_json(spec['hooks'])}"] if spec.get("hooks") else []
    return CanonicalContainer(lines=tuple(lines), unmeasured=frozenset(unmeasured))


def executed(name: str, process: Any) -> CanonicalContainer:
    """Write the canonical form of a process started inside a container, by a probe or a hook.

    Args:
        name: the container's name in its pod.
        process: the OCI ``process``, decoded.

    Raises:
        WorkloadError: ``cri_unknown_shape``.
    """
    lines = [f"exec in container {_json(name)}", *_process(_object(process, "process", _PROCESS))]
    return CanonicalContainer(lines=tuple(lines), unmeasured=frozenset())


def expected_exec(
    name: str, container: CanonicalContainer, command: Sequence[str]
) -> CanonicalContainer:
    """Do what :func:`executed` does for a command that a manifest names for this container.

    A runtime takes everything except the arguments from the container's own process.
    """
    kept = [line for line in container.lines if line.startswith(_OF_PROCESS)]
    lines = [f"exec in container {_json(name)}", *(f"arg {_json(each)}" for each in command), *kept]
    return CanonicalContainer(lines=tuple(lines), unmeasured=frozenset())


def _process(process: Mapping[str, Any]) -> Iterator[str]:
    for argument in _texts(process.get("args"), "args"):
        yield f"arg {_json(argument)}"
    for variable in _texts(process.get("env"), "env"):
        if not _HOSTNAME.fullmatch(variable) and not _CLUSTER.fullmatch(variable):
            yield f"env {_json(variable)}"
    yield f"cwd {_json(process.get('cwd', ''))}"
    user = _object(process.get("user"), "user", _USER)
    yield f"user {_json({key: user[key] for key in sorted(user)})}"
    capabilities = _object(
        process.get("capabilities") or {}, "capabilities", frozenset(_CAPABILITIES)
    )
    for kind in _CAPABILITIES:
        yield f"capabilities {kind} {_json(sorted(_texts(capabilities.get(kind), kind)))}"
    for key in ("noNewPrivileges", "terminal"):
        yield f"{key} {_json(bool(process.get(key)))}"
    for key in ("apparmorProfile", "selinuxLabel"):
        yield f"{key} {_json(process.get(key) or '')}"
    yield f"rlimits {_json(process.get('rlimits') or [])}"


def _linux(linux: Mapping[str, Any], around: Surroundings, container_id: str) -> Iterator[str]:
    for namespace in _list(linux.get("namespaces"), "namespaces"):
        each = _object(namespace, "namespace", frozenset({"path", "type"}))
        yield f"namespace {_json(each.get('type'))} {_namespace(each, around)}"
    for key in ("maskedPaths", "readonlyPaths"):
        yield f"{key} {_json(sorted(_texts(linux.get(key), key)))}"
    for key in ("devices", "gidMappings", "sysctl", "uidMappings"):
        yield f"{key} {_json(linux.get(key) or None)}"
    for key in ("mountLabel", "rootfsPropagation"):
        yield f"{key} {_json(linux.get(key) or '')}"
    yield f"seccomp {_digest_of(linux.get('seccomp'))}"
    resources = _object(linux.get("resources") or {}, "resources", _RESOURCES)
    yield f"device rules {_json(resources.get('devices') or None)}"
    path = linux.get("cgroupsPath")
    # By this place the attestor found the caller; it says nothing about the manifest.
    if not isinstance(path, str) or container_id not in path:
        _unknown(f"cgroupsPath {path!r} does not end in the container's ID")


def _namespace(each: Mapping[str, Any], around: Surroundings) -> str:
    path = each.get("path")
    if not path:
        return "own"
    file = _NAMESPACES.get(str(each.get("type")))
    if around.sandbox_pid and path == f"/proc/{around.sandbox_pid}/ns/{file}":
        return "of the pod"
    if re.fullmatch(r"/(var/)?run/netns/cni-[0-9a-f-]{36}", str(path)):
        return "of the pod"
    return f"at {_json(path)}"


def _mount(
    mount: Mapping[str, Any], around: Surroundings, container_id: str
) -> tuple[str, set[str]]:
    destination, kind, source = (mount.get(key) for key in ("destination", "type", "source"))
    options = sorted(_texts(mount.get("options"), "options"))
    if not isinstance(destination, str) or not isinstance(source, str):
        _unknown(f"a mount without source or destination: {_json(dict(mount))[:200]}")
    where, content = source, set[str]()
    if kind == "bind":
        where = _source(source, destination, around, container_id)
        if where.startswith(("host ", "volume ", "subpath ")):
            what, kind_or_name, *_ = where.split(" ")
            if what != "volume" or kind_or_name != _EMPTY:
                content.add(where)
    mapped = {key: mount[key] for key in ("gidMappings", "uidMappings") if mount.get(key)}
    line = f"mount {_json([destination, kind, where, options, *([mapped] if mapped else [])])}"
    return line, content


def _source(source: str, destination: str, around: Surroundings, container_id: str) -> str:
    """Return where a bind mount comes from, without what differs from pod to pod."""
    for each in around.runtime:
        own = f"{each}/io.containerd.grpc.v1.cri/containers/{container_id}/volumes/"
        if source.startswith(own) and _IMAGE_VOLUME.fullmatch(source.removeprefix(own)):
            return "runtime image-volume"
    sandboxes = f"io.containerd.grpc.v1.cri/sandboxes/{around.sandbox_id}"
    made = _MADE_BY_RUNTIME.get(destination)
    if made and source in {f"{each}/{sandboxes}/{made}" for each in around.runtime}:
        return f"runtime {made}"
    pod = f"{around.kubelet}/pods/{around.pod_uid}/"
    rest = source.removeprefix(pod) if source.startswith(pod) else ""
    found = None if "/.." in rest else _kubelets(rest, destination)
    return found if found is not None else f"host {_json(source)}"


def _kubelets(rest: str, destination: str) -> str | None:
    """Return a known place below the kubelet's directory of the pod; None for any other."""
    if (rest, destination) == ("etc-hosts", "/etc/hosts"):
        return "kubelet etc-hosts"
    if _TERMINATION.fullmatch(rest):
        return "kubelet termination-log"
    if (volume := _VOLUME.fullmatch(rest)) is not None:
        if volume["type"] == "projected" and _TOKEN_VOLUME.fullmatch(volume["name"]):
            return "kubelet kube-api-access"
        return f"volume {volume['type']} {_json(volume['name'] + (volume['rest'] or ''))}"
    if (subpath := _SUBPATH.fullmatch(rest)) is not None:
        return f"subpath {subpath['name']} {subpath['index']}"
    return None


def _annotations(found: Mapping[str, Any], name: str, around: Surroundings) -> Iterator[str]:
    """Return annotations that may change how a container runs; the runtime's own are checked."""
    expected = {
        "sandbox-id": around.sandbox_id,
        "sandbox-uid": around.pod_uid,
        "container-name": name,
        "container-type": "container" if name else "sandbox",
    }
    for key, value in sorted(found.items()):
        own = key.removeprefix(_CRI_ANNOTATIONS) if key.startswith(_CRI_ANNOTATIONS) else None
        if own in expected:
            if value != expected[own]:
                _unknown(f"the annotation {key} is {value!r}, not {expected[own]!r}")
        elif own is None or not own.startswith(("sandbox-", "image-name")):
            yield f"annotation {_json(key)} {_json(value)}"


# --- strict reading -----------------------------------------------------------------------------


def _object(value: Any, what: str, keys: frozenset[str]) -> dict[str, Any]:
    found = _mapping(value, what)
    if more := sorted(set(found) - keys):
        _unknown(f"{what} has the unknown key {more[0]!r}")
    return found


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _unknown(f"{what} is not an object")
    return value


def _list(value: Any, what: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        _unknown(f"{what} is not a list")
    return value


def _texts(value: Any, what: str) -> Sequence[str]:
    found = _list(value, what)
    if not all(isinstance(each, str) for each in found):
        _unknown(f"{what} has an element that is not text")
    return found


def _json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    except RecursionError:  # it was read in fewer frames than it is written in
        _unknown("something in it is nested too deeply")


def _digest_of(value: Any) -> str:
    return "none" if not value else hashlib.sha256(_json(value).encode()).hexdigest()


def _unknown(why: str) -> NoReturn:
    raise WorkloadError(
        f"the runtime describes a container in a way that this program does not know: {why[:400]}",
        reason="cri_unknown_shape",
        advice="tested with containerd 1.6 and 2.1; look for a newer version of this program",
    )
