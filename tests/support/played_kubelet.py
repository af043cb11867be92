"""A kubelet's part for tests: what it asks of the runtime for a manifest, written by hand.

It is not made from the code under test: the fields here are those of ``runtime.v1``, as a kubelet
of Kubernetes 1.34 fills them, for the manifests that the tests draw.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

FOLDERS = {
    "emptyDir": "empty-dir",
    "configMap": "configmap",
    "secret": "secret",
    "projected": "projected",
    "downwardAPI": "downward-api",
}
READ_ONLY = {"configMap", "secret", "projected", "downwardAPI"}
MASKED = ["/proc/acpi", "/proc/kcore", "/proc/scsi"]


def container(
    spec: Mapping[str, Any], one: Mapping[str, Any], uid: str, kubelet: str, image_user: str
) -> dict[str, Any]:
    """The ``ContainerConfig`` of one container, as keywords of ``Containerd.container``."""
    mounts = mounts_of(spec, one, f"{kubelet}/pods/{uid}")
    context = {**spec.get("securityContext", {}), **one.get("securityContext", {})}
    wanted = context.get("capabilities", {})
    pid = 2 if spec.get("hostPID") else 0 if spec.get("shareProcessNamespace") else 1
    security: dict[str, Any] = {
        "namespace_options": {"network": 2 if spec.get("hostNetwork") else 0, "pid": pid},
        "readonly_rootfs": context.get("readOnlyRootFilesystem", False),
        "no_new_privs": context.get("allowPrivilegeEscalation") is False,
        "masked_paths": MASKED,
        "readonly_paths": [
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ],
        "capabilities": {
            "add_capabilities": wanted.get("add", []),
            "drop_capabilities": wanted.get("drop", []),
        },
        "supplemental_groups": groups(context),
    }
    for key, field in (("runAsUser", "run_as_user"), ("runAsGroup", "run_as_group")):
        if key in context:
            security[field] = {"value": context[key]}
    user = image_user.partition(":")[0] or "0"
    if "runAsUser" not in context:
        if user.isdecimal():
            security["run_as_user"] = {"value": int(user)}
        else:
            security["run_as_username"] = user
    values: dict[str, str] = {}
    envs = []
    for variable in one.get("env", []):
        value = variable.get("value", "")
        for known, found in values.items():
            value = value.replace(f"$({known})", found)
        values[variable["name"]] = value
        envs.append({"key": variable["name"], "value": value})
    service = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}
    envs += [{"key": key, "value": value} for key, value in service.items()]

    def expanded(word: str) -> str:
        for known, found in values.items():
            word = word.replace(f"$({known})", found)
        return word

    return {
        "command": [expanded(word) for word in one.get("command", [])],
        "args": [expanded(word) for word in one.get("args", [])],
        "envs": envs,
        "working_dir": one.get("workingDir", ""),
        "mounts": mounts,
        "security": security,
    }


def mounts_of(spec: Mapping[str, Any], one: Mapping[str, Any], pod: str) -> list[dict[str, Any]]:
    """The mounts of a container; ``pod``: the kubelet's folder of its pod."""
    volumes = {each["name"]: each for each in spec.get("volumes", [])}
    mounts = []
    for number, mount in enumerate(one.get("volumeMounts", [])):
        name = mount["name"]
        (kind,) = set(volumes[name]) - {"name"}
        source = (
            volumes[name]["hostPath"]["path"]
            if kind == "hostPath"
            else f"{pod}/volumes/kubernetes.io~{FOLDERS[kind]}/{name}"
        )
        if "subPath" in mount:
            source = f"{pod}/volume-subpaths/{name}/{one['name']}/{number}"
        mounts.append(
            {
                "container_path": mount["mountPath"],
                "host_path": source,
                "readonly": kind in READ_ONLY or mount.get("readOnly", False),
            }
        )
    mounts.append({"container_path": "/etc/hosts", "host_path": f"{pod}/etc-hosts"})
    log = one.get("terminationMessagePath", "/dev/termination-log")
    mounts.append({"container_path": log, "host_path": f"{pod}/containers/{one['name']}/0a1b2c3d"})
    return mounts


def sandbox(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The sandbox's ``LinuxSandboxSecurityContext``."""
    context = spec.get("securityContext", {})
    pid = 2 if spec.get("hostPID") else 0 if spec.get("shareProcessNamespace") else 1
    found: dict[str, Any] = {
        "namespace_options": {"network": 2 if spec.get("hostNetwork") else 0, "pid": pid},
        "supplemental_groups": groups(context),
    }
    for key, field in (("runAsUser", "run_as_user"), ("runAsGroup", "run_as_group")):
        if key in context:
            found[field] = {"value": context[key]}
    return found


def groups(context: Mapping[str, Any]) -> list[int]:
    found = list(context.get("supplementalGroups", []))
    return found + ([context["fsGroup"]] if "fsGroup" in context else [])
