"""Computes what a kubelet asks of the runtime for a Pod: environment and mounts with defaults.

Owns :func:`asked`. Invariant: a field that this module does not know is an error, and so is a value
that the manifest does not contain (a ConfigMap's in the environment, a claim's volume). In both
cases, only a reference pod shows what runs.

Sources: Kubernetes 1.34 ``pkg/kubelet/kubelet_pods.go`` (``makeMounts``,
``makeEnvironmentVariables``), ``pkg/kubelet/kuberuntime/kuberuntime_container.go``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from sds.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

POD_UID: Final = "00000000-0000-4000-8000-000000000000"
"""A placeholder for the pod's UID, which the canonical form leaves out."""
_POD: Final = frozenset(
    [
        "containers",
        "initContainers",
        "volumes",
        "securityContext",
        "hostNetwork",
        "hostPID",
        "shareProcessNamespace",
        "restartPolicy",
        "terminationGracePeriodSeconds",
        "nodeName",
        "nodeSelector",
        "affinity",
        "tolerations",
        "priority",
        "priorityClassName",
        "preemptionPolicy",
        "schedulerName",
        "serviceAccountName",
        "serviceAccount",
        "automountServiceAccountToken",
        "dnsPolicy",
        "dnsConfig",
        "hostAliases",
        "enableServiceLinks",
        "hostname",
        "subdomain",
        "imagePullSecrets",
        "topologySpreadConstraints",
        "readinessGates",
        "activeDeadlineSeconds",
    ]
)
_CONTAINER: Final = frozenset(
    [
        "name",
        "image",
        "command",
        "args",
        "workingDir",
        "env",
        "volumeMounts",
        "securityContext",
        "imagePullPolicy",
        "ports",
        "resources",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "restartPolicy",
    ]
)
_MOUNT: Final = frozenset(["name", "mountPath", "readOnly", "subPath", "mountPropagation"])
_VOLUMES: Final = {
    "emptyDir": ("empty-dir", False),
    "configMap": ("configmap", True),
    "secret": ("secret", True),
    "projected": ("projected", True),
    "downwardAPI": ("downward-api", True),
}
"""For each kind of volume: its name in the kubelet's directory, and whether it is read-only."""
_REFERENCE: Final = re.compile(r"\$(?:\$|\(([^)]*)\))")


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedMount:
    """A bind mount as CRI describes it."""

    destination: str
    source: str
    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedContainer:
    """A container as CRI's CreateContainer asks for it.

    Attributes:
        name: the container's name in the pod.
        image: the image as the manifest names it.
        command: replaces the image's Entrypoint unless empty.
        args: replaces the image's Cmd unless empty.
        environment: the variables, in order.
        working_dir: the working directory; the image's if empty.
        mounts: the mounts, in order.
        security: the container's ``securityContext``, merged over the pod's.
    """

    name: str
    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    working_dir: str
    mounts: tuple[AskedMount, ...]
    security: Mapping[str, Any]


def asked(spec: Mapping[str, Any], *, kubelet: str) -> tuple[AskedContainer, ...]:
    """Return every container and init container of a Pod.

    Args:
        spec: the ``spec`` of the Pod as the API server admitted it, decoded.
        kubelet: the kubelet's directory.

    Raises:
        ConfigurationError: the manifest alone does not tell what will run.
    """
    _known(spec, _POD, "spec")
    if spec.get("enableServiceLinks") is not False:
        cannot("spec.enableServiceLinks is not false: other Services become variables")
    volumes = {str(each.get("name")): each for each in spec.get("volumes") or ()}
    if spec.get("automountServiceAccountToken") is not False and not any(
        name.startswith("kube-api-access-") for name in volumes
    ):
        cannot(
            "the account's token is not in it: give the manifest as the API server admitted it, or "
            "set automountServiceAccountToken: false"
        )
    places = _Places(volumes=volumes, pod=f"{kubelet}/pods/{POD_UID}")
    found = [
        _container(each, spec.get("securityContext") or {}, places)
        for kind in ("initContainers", "containers")
        for each in spec.get(kind) or ()
    ]
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    volumes: Mapping[str, Mapping[str, Any]]
    pod: str


def _container(
    found: Mapping[str, Any], shared: Mapping[str, Any], places: _Places
) -> AskedContainer:
    name = str(found.get("name"))
    _known(found, _CONTAINER, name)
    environment = tuple(_environment(found.get("env") or (), name))
    values = dict(environment)
    return AskedContainer(
        name=name,
        image=str(found.get("image")),
        command=tuple(_expanded(str(each), values, name) for each in found.get("command") or ()),
        args=tuple(_expanded(str(each), values, name) for each in found.get("args") or ()),
        environment=environment,
        working_dir=str(found.get("workingDir") or ""),
        mounts=tuple(_mounts(found, name, places)),
        security={**shared, **(found.get("securityContext") or {})},
    )


def _environment(variables: Any, where: str) -> Iterator[tuple[str, str]]:
    values: dict[str, str] = {}
    for each in variables:
        _known(each, frozenset({"name", "value"}), f"{where}: the variable {each.get('name')}")
        name, value = str(each["name"]), _expanded(str(each.get("value") or ""), values, where)
        values[name] = value
        yield name, value


def _expanded(text: str, values: Mapping[str, str], where: str) -> str:
    """Replace ``$(NAME)`` and halve ``$$`` (Kubernetes ``third_party/forked/golang/expansion``)."""

    def replace(matched: re.Match[str]) -> str:
        name = matched[1]
        if name is None:
            return "$"
        if name not in values:
            cannot(f"{where}: $({name}) is not a variable of the manifest")
        return values[name]

    return _REFERENCE.sub(replace, text)


def _mounts(found: Mapping[str, Any], name: str, places: _Places) -> Iterator[AskedMount]:
    destinations = set()
    for number, mount in enumerate(found.get("volumeMounts") or ()):
        _known(mount, _MOUNT, f"{name}: volumeMounts[{number}]")
        volume = places.volumes.get(str(mount["name"]))
        if volume is None:
            cannot(f"{name}: the volume {mount['name']} is not in the manifest")
        source, read_only = _source(volume, name, places)
        if mount.get("subPath"):
            source = f"{places.pod}/volume-subpaths/{mount['name']}/{name}/{number}"
        if (mount.get("mountPropagation") or "None") != "None":
            cannot(f"{name}: the mount {mount['mountPath']} is propagated")
        destination = str(mount["mountPath"])
        destinations.add(destination)
        yield AskedMount(
            destination=destination,
            source=source,
            read_only=read_only or mount.get("readOnly") is True,
        )
    if "/etc/hosts" not in destinations:
        yield AskedMount(
            destination="/etc/hosts", source=f"{places.pod}/etc-hosts", read_only=False
        )
    yield AskedMount(
        destination=str(found.get("terminationMessagePath") or "/dev/termination-log"),
        source=f"{places.pod}/containers/{name}/00000000",
        read_only=False,
    )


def _source(volume: Mapping[str, Any], where: str, places: _Places) -> tuple[str, bool]:
    (kind, content), *more = [(key, value) for key, value in volume.items() if key != "name"] or [
        ("emptyDir", {})
    ]
    if more:
        cannot(f"{where}: the volume {volume['name']} is of two kinds")
    if kind == "hostPath":
        return str(content["path"]), False
    folder = f"{places.pod}/volumes/kubernetes.io"
    if kind == "csi":
        return f"{folder}~csi/{volume['name']}/mount", content.get("readOnly") is True
    if kind not in _VOLUMES:
        cannot(f"{where}: the manifest does not say where a volume of the kind {kind} is")
    plain, read_only = _VOLUMES[kind]
    return f"{folder}~{plain}/{volume['name']}", read_only


def _known(found: Mapping[str, Any], keys: frozenset[str], where: str) -> None:
    if more := sorted(key for key in set(found) - keys if found[key] not in (None, False, [], {})):
        cannot(f"{where}: the manifest does not say what {more[0]} makes of it")


def cannot(why: str) -> NoReturn:
    """Raise the error for a manifest that does not say what runs."""
    raise ConfigurationError(
        f"this pod cannot be computed from its manifest: {why}",
        advice="start a reference pod, and give its UID (--uid)",
    )
