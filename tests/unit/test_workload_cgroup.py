"""Where pods may be: accepted directly below the kubelet's own directories, refused elsewhere."""

from __future__ import annotations

import pytest

from sds.errors import CgroupError
from sds.workload.cgroup import MOST_CHARACTERS, PodCgroup, PodRoots

UID = "08d52ca1-d4b2-46d1-8d53-1b2c3d4e5f60"
OTHER = "ffffffff-d4b2-46d1-8d53-1b2c3d4e5f60"
SLICED = UID.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"
ID = "ab" * 32
OTHER_ID = "cd" * 32

HOST = PodRoots.of("0::/init.scope\n", inside=False)
"""An agent on a host with systemd, or in a pod that shares the host's cgroup namespace."""
PRIVATE = PodRoots.of("0::/../../../../init.scope\n", inside=True, cgroup_root="/")
"""In a burstable or best-effort pod with a cgroup namespace of its own (cgroup v2)."""
GUARANTEED = PodRoots.of("0::/../../../init.scope\n", inside=True)
SLICED_NODE = PodRoots.of("0::/../../../../init.scope\n", inside=True)
NESTED_NODE = PodRoots.of("0::/../../../../../init.scope\n", inside=True)
"""kind: kubelet.slice/kubelet-kubepods.slice/…-burstable.slice/…-pod<uid>.slice/….scope."""
MISMATCHED = PodRoots.of("0::/../../../init.scope\n", inside=True)

MISMATCH = f"kubepods-burstable-pod{SLICED}.slice:cri-containerd:{ID}"


def find(path: str, roots: PodRoots = HOST) -> PodCgroup | None:
    return roots.find(f"0::{path}\n")


@pytest.mark.parametrize(
    ("path", "uid", "container"),
    [
        # cgroupfs driver: QoS folders, none for Guaranteed pods, static pods without dashes.
        (f"/kubepods/besteffort/pod{UID}/{ID}", UID, ID),
        (f"/kubepods/pod{UID}/{ID}", UID, ID),
        (f"/kubepods/burstable/pod{STATIC}/{ID}", STATIC, ID),
        (f"/kubepods/burstable/pod{UID}/crio-{ID}", UID, ID),
        (f"/kubelet/kubepods/pod{UID}/{ID}", UID, ID),
        # systemd driver.
        (
            (
                "/kubepods.slice/kubepods-burstable.slice/"
                f"kubepods-burstable-pod{SLICED}.slice/cri-containerd-{ID}.scope"
            ),
            UID,
            ID,
        ),
        (f"/kubepods.slice/kubepods-pod{SLICED}.slice/crio-{ID}.scope", UID, ID),
        (f"/kubepods.slice/kubepods-pod{SLICED}.slice/crio-{ID}.scope/container", UID, ID),
        (f"/kubepods.slice/kubepods-pod{SLICED}.slice/docker-{ID}.scope", UID, ID),
        (f"/kubepods.slice/kubepods-pod{STATIC}.slice/libpod-{ID}.scope", STATIC, ID),
        (
            (
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
                f"kubelet-kubepods-besteffort-pod{SLICED}.slice/cri-containerd-{ID}.scope"
            ),
            UID,
            ID,
        ),
        # A kubelet with the systemd driver and a runtime without: in the runtime's own group
        # (v1), or beside it (v2).
        (f"/system.slice/containerd.service/{MISMATCH}", UID, ID),
        (f"/system.slice/k3s.service/{MISMATCH}", UID, ID),
        (f"/system.slice/k3s-agent.service/{MISMATCH}", UID, ID),
        (f"/system.slice/rke2-agent.service/{MISMATCH}", UID, ID),
        (f"/system.slice/rke2-server.service/{MISMATCH}", UID, ID),
        (f"/system.slice/k0sworker.service/{MISMATCH}", UID, ID),
        (f"/system.slice/k0scontroller.service/{MISMATCH}", UID, ID),
        (f"/system.slice/{MISMATCH}", UID, ID),
        (f"/{MISMATCH}", UID, ID),
        # A pod's own processes, a monitor, an unknown runtime: the pod is known, no container.
        (f"/kubepods/pod{UID}", UID, None),
        (f"/kubepods.slice/kubepods-pod{SLICED}.slice/crio-conmon-{ID}.scope", UID, None),
        (f"/kubepods/pod{UID}/sandbox/{ID}", UID, None),
        # Such a name does not take a process out of its pod.
        (f"/kubepods/pod{UID}/{ID}/x (deleted)", UID, ID),
        # A privileged pod nests a pod of another name below itself: the outermost counts.
        (f"/kubepods/pod{UID}/{ID}/kubepods/pod{OTHER}/{OTHER_ID}", UID, ID),
    ],
)
def test_paths_of_pods(path: str, uid: str, container: str | None) -> None:
    assert find(path) == PodCgroup(pod_uid=uid, container_id=container)


@pytest.mark.parametrize(
    ("roots", "path"),
    [
        (PRIVATE, f"/../../../besteffort/pod{UID}/{ID}"),
        (PRIVATE, f"/../../../pod{UID}/{ID}"),
        (PRIVATE, f"/../../pod{UID}/{ID}"),
        (PRIVATE, f"/../../../../kubepods/burstable/pod{UID}/{ID}"),
        (GUARANTEED, f"/../../burstable/pod{UID}/{ID}"),
        (GUARANTEED, f"/../../pod{UID}/{ID}"),
        (SLICED_NODE, f"/../../kubepods-burstable-pod{SLICED}.slice/cri-containerd-{ID}.scope"),
        (SLICED_NODE, f"/../../../kubepods-pod{SLICED}.slice/cri-containerd-{ID}.scope"),
        (
            SLICED_NODE,
            (
                "/../../../kubepods-besteffort.slice/"
                f"kubepods-besteffort-pod{SLICED}.slice/cri-containerd-{ID}.scope"
            ),
        ),
        (
            NESTED_NODE,
            f"/../../kubelet-kubepods-burstable-pod{SLICED}.slice/cri-containerd-{ID}.scope",
        ),
        (
            NESTED_NODE,
            (
                "/../../../kubelet-kubepods-besteffort.slice/"
                f"kubelet-kubepods-besteffort-pod{SLICED}.slice/cri-containerd-{ID}.scope"
            ),
        ),
        (MISMATCHED, f"/../{MISMATCH}"),
    ],
)
def test_paths_of_pods_seen_from_a_private_cgroup_namespace(roots: PodRoots, path: str) -> None:
    assert find(path, roots) == PodCgroup(pod_uid=UID, container_id=ID)


@pytest.mark.parametrize(
    ("init", "path"),
    [
        # The node is a container or a guest of LXC on this machine: its root is where its first
        # process is.
        ("/docker/ef", f"/docker/ef/kubepods/pod{UID}/{ID}"),
        ("/lxc.payload.node/init.scope", f"/lxc.payload.node/kubepods/pod{UID}/{ID}"),
        ("/system.slice/docker-ef.scope/init", f"/system.slice/docker-ef.scope/kubepods/pod{UID}"),
    ],
)
def test_the_root_of_the_node_is_where_its_first_process_lives(init: str, path: str) -> None:
    roots = PodRoots.of(f"0::{init}\n", inside=False)
    found = find(path, roots)
    assert found is not None
    assert found.pod_uid == UID
    for elsewhere in (f"/kubepods/pod{UID}/{ID}", f"/x{path}"):
        with pytest.raises(CgroupError, match="has a pod's name"):
            find(elsewhere, roots)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/user.slice/user-1000.slice/session-1.scope",
        "/system.slice/ssh.service",
        "/kubepods",
        "/kubepods/burstable",
        f"/kubepods/pod{UID[:-1]}/{ID}",
        f"/kubepods/xpod{UID}/{ID}",
        f"/kubepods/pod{UID}x/{ID}",
        f"/kubepods/pod{UID.upper()}/{ID}",
        f"/kubepods/pod{UID.replace('-', '_', 1)}/{ID}",
        f"/kubepods/burstable-pod{SLICED}.slice",
    ],
)
def test_paths_outside_pods(path: str) -> None:
    assert find(path) is None


@pytest.mark.parametrize(
    "path",
    [
        # systemd delegates these to their users.
        f"/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{ID}",
        f"/user.slice/user-1000.slice/user@1000.service/app.slice/pod{UID}/{ID}",
        f"/user.slice/kubepods/pod{UID}/{ID}",
        f"/user.slice/user-1000.slice/user@1000.service/kubepods.slice/kubepods-pod{SLICED}.slice",
        f"/system.slice/mine.service/kubepods/pod{UID}/{ID}",
        f"/system.slice/mine.service/{MISMATCH}",
        f"/system.slice/k3s.service/kubepods/pod{UID}/{ID}",
        f"/system.slice/containerd.service/pod{UID}/{ID}",
        f"/system.slice/containerd.service/x/{MISMATCH}",
        # A container engine, with and without root; a kubelet in a user's unit (k3s --rootless).
        f"/docker/{OTHER_ID}/kubepods/pod{UID}/{ID}",
        f"/system.slice/docker-{ID}.scope/kubepods/pod{UID}/{ID}",
        f"/machine.slice/libpod-{ID}.scope/kubepods.slice/kubepods-pod{SLICED}.slice/{ID}",
        f"/machine.slice/x/pod{UID}/{ID}",
        (
            "/user.slice/user-1000.slice/user@1000.service/k3s-rootless.service/"
            f"kubepods/burstable/pod{UID}/{ID}"
        ),
        f"/user.slice/user-1000.slice/user@1000.service/user.slice/pod{UID}/libpod-{ID}.scope",
        # LXC, and libcgroup's groups (cgconfig.conf gives them to users).
        f"/lxc/guest/kubepods/pod{UID}/{ID}",
        f"/lxc.payload.guest/kubepods/burstable/pod{UID}/{ID}",
        f"/lxc.payload.guest/pod{UID}/{ID}",
        f"/students/alice/pod{UID}/{ID}",
        f"/h-attack-deleg/pod{UID}/{ID}",
        f"/pod{UID}/{ID}",
        # Below the kubelet's root, and not where it puts pods.
        f"/kubepods/x/pod{UID}/{ID}",
        f"/kubepods/burstable/x/pod{UID}/{ID}",
        f"/kubepods/burstable/besteffort/pod{UID}/{ID}",
        f"/kubepods/kubepods-pod{SLICED}.slice/{ID}",
        f"/kubepods.slice/pod{UID}/{ID}",
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-burstable-pod{SLICED}.slice/{ID}",
        f"/kubepods.slice/kubepods-burstable-pod{SLICED}.slice/{ID}",
        f"/kubepods.slice/kubelet-kubepods-pod{SLICED}.slice/{ID}",
        f"/kubepods.slice/x.slice/kubepods-pod{SLICED}.slice/{ID}",
        f"/other/kubepods/pod{UID}/{ID}",
        # Above the root of the node.
        f"/../kubepods/pod{UID}/{ID}",
        f"/../../pod{UID}/{ID}",
    ],
)
def test_a_pods_name_anywhere_else_is_refused(path: str) -> None:
    with pytest.raises(CgroupError, match="has a pod's name"):
        find(path)


@pytest.mark.parametrize(
    ("roots", "path"),
    [
        # Inside our own container, deeper than pods are, or outside all pods.
        (PRIVATE, f"/pod{UID}/{ID}"),
        (PRIVATE, f"/../pod{UID}/{ID}"),
        (PRIVATE, f"/../../burstable/pod{UID}/{ID}"),
        (PRIVATE, f"/../../x/pod{UID}/{ID}"),
        (PRIVATE, f"/../../../x/pod{UID}/{ID}"),
        (PRIVATE, f"/../../../../user.slice/user@1.service/kubepods/pod{UID}/{ID}"),
        (PRIVATE, f"/../../../../../kubepods/pod{UID}/{ID}"),
        # A private namespace outside pods: what lies above us may be anybody's.
        (PodRoots.of("0::/../../init.scope\n", inside=False), f"/../pod{UID}/{ID}"),
    ],
)
def test_a_private_cgroup_namespace_hides_no_forgery(roots: PodRoots, path: str) -> None:
    with pytest.raises(CgroupError, match="has a pod's name"):
        find(path, roots)


def test_what_is_configured_replaces_what_is_usual() -> None:
    roots = PodRoots.of(
        "0::/\n", inside=False, cgroup_root="/my-k8s", runtime_cgroup="/a/b.service"
    )
    for path in (
        f"/my-k8s/kubepods/pod{UID}/{ID}",
        f"/my_k8s.slice/my_k8s-kubepods.slice/my_k8s-kubepods-pod{SLICED}.slice/{ID}",
        f"/a/b.service/{MISMATCH}",
        f"/a/{MISMATCH}",
    ):
        assert find(path, roots) == PodCgroup(pod_uid=UID, container_id=ID), path
    for path in (f"/kubepods/pod{UID}/{ID}", f"/system.slice/containerd.service/{MISMATCH}"):
        with pytest.raises(CgroupError):
            find(path, roots)


HYBRID = PodRoots.of(
    "11:memory:/\n10:rdma:/\n3:cpu,cpuacct:/\n1:name=systemd:/init.scope\n0::/init.scope\n",
    inside=False,
)


def test_a_hybrid_node_names_the_pod_in_the_kubelets_hierarchies() -> None:
    text = (
        f"11:memory:/kubepods/pod{UID}/{ID}\n"
        "10:rdma:/\n"
        f"3:cpu,cpuacct:/kubepods/pod{UID}/{ID}\n"
        f"1:name=systemd:/kubepods/pod{UID}\n"
        "0::/system.slice/containerd.service\n"
    )
    assert HYBRID.find(text) == PodCgroup(pod_uid=UID, container_id=ID)


@pytest.mark.parametrize(
    "text",
    [
        # Moved in one hierarchy only, as a user can where libcgroup or systemd delegated that one.
        f"11:memory:/\n3:cpu,cpuacct:/kubepods/pod{UID}/{ID}\n1:name=systemd:/\n0::/\n",
        f"11:memory:/kubepods/pod{UID}/{ID}\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n",
        f"11:memory:/\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/kubepods/pod{UID}/{ID}\n",
        f"11:memory:/\n10:rdma:/kubepods/pod{UID}\n3:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n",
        # A pod that moved itself into another's group, in one hierarchy.
        (
            f"11:memory:/kubepods/pod{UID}/{ID}\n3:cpu,cpuacct:/kubepods/pod{OTHER}/{OTHER_ID}\n"
            f"1:name=systemd:/kubepods/pod{UID}/{ID}\n0::/\n"
        ),
        (
            f"11:memory:/kubepods/pod{UID}/{ID}\n3:cpu,cpuacct:/kubepods/pod{UID}/{OTHER_ID}\n"
            f"1:name=systemd:/kubepods/pod{UID}/{ID}\n0::/\n"
        ),
    ],
)
def test_hierarchies_that_contradict_each_other_are_refused(text: str) -> None:
    with pytest.raises(CgroupError, match="a process is in one") as caught:
        HYBRID.find(text)
    assert caught.value.reason == "cgroup_ambiguous"


SEPARATORS = ("\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029")
"""What ``str.splitlines`` takes for the end of a line; the kernel forbids only the line feed."""


@pytest.mark.parametrize("separator", SEPARATORS)
def test_no_name_of_a_group_begins_a_line(separator: str) -> None:
    forged = f"/user.slice/user@1.service/x{separator}0::/kubepods/pod{UID}/{ID}"
    with pytest.raises(CgroupError, match="has a pod's name"):
        find(forged)
    assert find(f"/system.slice/x{separator}0::/init.scope") is None


def test_a_hierarchy_that_is_named_twice_is_refused() -> None:
    with pytest.raises(CgroupError, match="twice"):
        HOST.find(f"0::/user.slice\n0::/kubepods/pod{UID}/{ID}\n")


@pytest.mark.parametrize("line", ["x", "0:", "a::/", "0::kubepods", f"/kubepods/pod{UID}"])
def test_a_malformed_line_is_refused(line: str) -> None:
    with pytest.raises(CgroupError, match="malformed"):
        HOST.find(line + "\n")


def test_a_hierarchy_that_the_first_process_does_not_have_is_refused() -> None:
    with pytest.raises(CgroupError, match="no control group in hierarchy 'cpu'"):
        HOST.find("2:cpu:/\n")


def test_the_text_is_bounded() -> None:
    with pytest.raises(CgroupError, match="longer than"):
        HOST.find("0::/" + "x" * MOST_CHARACTERS)


def test_nothing_at_all_is_no_pod() -> None:
    assert HOST.find("") is None
