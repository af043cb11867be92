import pytest

from sds.errors import CgroupError
from sds.workload.cgroup import PodCgroup, parse_cgroup

UID = "08d52ca1-d4b2-46d1-8d53-1b2c3d4e5f60"
OTHER = "ffffffff-d4b2-46d1-8d53-1b2c3d4e5f60"
SLICED = UID.replace("-", "_")
STATIC = "0123456789abcdef0123456789abcdef"
ID = "ab" * 32
OTHER_ID = "cd" * 32


@pytest.mark.parametrize(
    ("path", "uid", "container"),
    [
        # cgroupfs driver: QoS folders, none for Guaranteed pods, static pods without dashes.
        (f"/kubepods/besteffort/pod{UID}/{ID}", UID, ID),
        (f"/kubepods/pod{UID}/{ID}", UID, ID),
        (f"/kubepods/burstable/pod{STATIC}/{ID}", STATIC, ID),
        (f"/kubepods/burstable/pod{UID}/crio-{ID}", UID, ID),
        (f"/kubelet/kubepods/pod{UID}/{ID}", UID, ID),
        # cgroup v2 seen from a private cgroup namespace, from which nothing above is visible.
        (f"/../../../burstable/pod{UID}/{ID}", UID, ID),
        (f"/../../pod{UID}/{ID}", UID, ID),
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
        # containerd with the cgroupfs driver on a systemd node.
        (
            f"/system.slice/containerd.service/kubepods-pod{SLICED}.slice:cri-containerd:{ID}",
            UID,
            ID,
        ),
        # A pod's own processes, a monitor, an unknown runtime: the pod is known, no container.
        (f"/kubepods/pod{UID}", UID, None),
        (f"/kubepods.slice/kubepods-pod{SLICED}.slice/crio-conmon-{ID}.scope", UID, None),
        (f"/kubepods/pod{UID}/sandbox/{ID}", UID, None),
        # A privileged pod nests a pod of another name below itself: the outermost counts.
        (f"/kubepods/pod{UID}/{ID}/kubepods/pod{OTHER}/{OTHER_ID}", UID, ID),
        (f"/../pod{UID}/{ID}/kubepods.slice/kubepods-pod{STATIC}.slice/{OTHER_ID}", UID, ID),
    ],
)
@pytest.mark.parametrize("hierarchy", ["0::", "4:memory:", "1:name=systemd:"])
def test_paths_of_pods(hierarchy: str, path: str, uid: str, container: str | None) -> None:
    assert parse_cgroup(f"{hierarchy}{path}\n") == PodCgroup(pod_uid=uid, container_id=container)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/user.slice/user-1000.slice/session-1.scope",
        "/system.slice/ssh.service",
        f"/kubepods/pod{UID[:-1]}/{ID}",
        f"/kubepods/xpod{UID}/{ID}",
        f"/kubepods/pod{UID}x/{ID}",
        f"/kubepods/pod{UID.upper()}/{ID}",
        f"/kubepods/pod{UID.replace('-', '_', 1)}/{ID}",
        f"/kubepods/burstable-pod{SLICED}.slice",
        # Control groups that a plain user may create: delegated by systemd.
        f"/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{ID}",
        f"/user.slice/kubepods/pod{UID}/{ID}",
        f"/system.slice/mine.service/kubepods/pod{UID}/{ID}",
        f"/system.slice/docker-{ID}.scope/kubepods/pod{UID}/{ID}",
        f"/machine.slice/x/pod{UID}/{ID}",
        # The control group is gone, so its last process is a zombie.
        f"/kubepods/pod{UID}/{ID} (deleted)",
    ],
)
def test_paths_outside_pods(path: str) -> None:
    assert parse_cgroup(f"0::{path}\n") is None


def test_a_hybrid_node_names_the_pod_in_some_hierarchies_only() -> None:
    text = (
        f"11:memory:/kubepods/pod{UID}/{ID}\n"
        f"10:rdma:/\n"
        f"3:cpu,cpuacct:/kubepods/pod{UID}/{ID}\n"
        f"1:name=systemd:/kubepods/pod{UID}\n"
        "0::/system.slice/containerd.service\n"
    )
    assert parse_cgroup(text) == PodCgroup(pod_uid=UID, container_id=ID)


@pytest.mark.parametrize("second", [f"pod{OTHER}/{ID}", f"pod{UID}/{OTHER_ID}"])
def test_hierarchies_that_contradict_each_other_are_refused(second: str) -> None:
    with pytest.raises(CgroupError, match="a process is in one") as caught:
        parse_cgroup(f"2:cpu:/kubepods/pod{UID}/{ID}\n3:memory:/kubepods/{second}\n")
    assert caught.value.reason == "cgroup_ambiguous"


@pytest.mark.parametrize("line", ["x", "0:", "a::/", "0::kubepods", f"/kubepods/pod{UID}"])
def test_a_malformed_line_is_refused(line: str) -> None:
    with pytest.raises(CgroupError, match="malformed"):
        parse_cgroup(line + "\n")


def test_nothing_at_all_is_no_pod() -> None:
    assert parse_cgroup("") is None
