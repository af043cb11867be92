"""The canonical form: strict about what it does not know, blind to nothing that matters."""

from __future__ import annotations

import copy
import json
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds.errors import WorkloadError
from sds.workload.cri.canonical import CanonicalContainer, Surroundings, canonical
from sds.workload.cri.pods import SeenContainer, SeenPod, SeenPods, unlisted
from sds.workload.cri.runtime import DescribedContainer, Listed
from sds.workload.cri.settings import CriSettings, PodContents

if TYPE_CHECKING:
    from pathlib import Path

UID = "f8c23ee5-a81d-4e76-a51e-0ce6edfa6c3a"
SANDBOX, CONTAINER = "ad" * 32, "6e" * 32
IMAGE = "sha256:" + "f9" * 32
AROUND = Surroundings(pod_uid=UID, sandbox_id=SANDBOX, sandbox_pid=25924)
POD = f"/var/lib/kubelet/pods/{UID}"
SANDBOXES = f"/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}"
CAPABILITIES = ["CAP_CHOWN", "CAP_KILL"]


def bind(destination: str, source: str, mode: str = "ro") -> dict[str, Any]:
    options = ["rbind", "rprivate", mode]
    return {"destination": destination, "type": "bind", "source": source, "options": options}


# As containerd 1.6 made it (shortened), with the mounts of a kubelet.
SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2-dev",
    "process": {
        "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
        "args": ["/app", "--serve"],
        "env": [
            "PATH=/bin",
            "HOSTNAME=web-1",
            "MODE=production",
            "KUBERNETES_SERVICE_HOST=10.96.0.1",
            "KUBERNETES_SERVICE_PORT=443",
            "KUBERNETES_PORT=tcp://10.96.0.1:443",
        ],
        "cwd": "/",
        "capabilities": {"bounding": CAPABILITIES, "effective": CAPABILITIES},
        "noNewPrivileges": True,
        "oomScoreAdj": 985,
    },
    "root": {"path": "rootfs"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        bind("/etc/hosts", f"{POD}/etc-hosts", "rw"),
        bind("/dev/termination-log", f"{POD}/containers/main/0a1b2c3d", "rw"),
        bind("/etc/resolv.conf", f"{SANDBOXES}/resolv.conf", "rw"),
        bind("/cache", f"{POD}/volumes/kubernetes.io~empty-dir/cache", "rw"),
        bind("/config", f"{POD}/volumes/kubernetes.io~configmap/settings"),
        bind(
            "/var/run/secrets/kubernetes.io/serviceaccount",
            f"{POD}/volumes/kubernetes.io~projected/kube-api-access-x7k2p",
        ),
    ],
    "annotations": {
        "io.kubernetes.cri.container-name": "main",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.image-name": "registry/app:1",
        "io.kubernetes.cri.sandbox-id": SANDBOX,
        "io.kubernetes.cri.sandbox-name": "web-1",
        "io.kubernetes.cri.sandbox-namespace": "shop",
        "io.kubernetes.cri.sandbox-uid": UID,
    },
    "linux": {
        "resources": {"cpu": {"shares": 2}, "devices": [{"allow": False, "access": "rwm"}]},
        "cgroupsPath": f"/kubepods/burstable/pod{UID}/{CONTAINER}",
        "namespaces": [
            {"type": "pid"},
            {"type": "ipc", "path": "/proc/25924/ns/ipc"},
            {"type": "mount"},
        ],
        "maskedPaths": ["/proc/acpi"],
        "readonlyPaths": ["/proc/bus"],
        "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"},
    },
}


def form(spec: Any, around: Surroundings = AROUND) -> CanonicalContainer:
    return canonical("main", IMAGE, spec, around, container_id=CONTAINER)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The specification with one value changed; numbers in ``path`` are places in lists."""
    spec = copy.deepcopy(SPEC)
    *above, last = [int(each) if each.isdecimal() else each for each in path.split(".")]
    inner: Any = spec
    for each in above:
        inner = inner[each]
    if last == "+":
        inner.append(value)
    else:
        inner[last] = value
    return spec


def test_the_lines_say_what_it_is() -> None:
    found = form(SPEC)
    assert found.unmeasured == {'volume configmap "settings"'}
    for line in (
        'container "main"',
        f'image "{IMAGE}"',
        'arg "/app"',
        'env "MODE=production"',
        'namespace "ipc" of the pod',
        'namespace "pid" own',
        "root writable",
        'mount ["/etc/hosts","bind","kubelet etc-hosts",["rbind","rprivate","rw"]]',
    ):
        assert line in found.lines
    assert not [
        line for line in found.lines if UID in line or SANDBOX in line or "HOSTNAME" in line
    ]


@pytest.mark.parametrize("name", ["cache", "empty-dir", "downward-api"])
def test_a_part_of_a_volume_is_unmeasured_whatever_the_volume_is_called(name: str) -> None:
    """Its path says the volume's name and not its kind, and anyone chooses names."""
    mount = bind("/data", f"{POD}/volume-subpaths/{name}/main/0")
    assert form(SPEC | {"mounts": [mount]}).unmeasured == {f"subpath {name} 0"}


def test_labels_and_annotations_in_a_volume_are_unmeasured() -> None:
    mount = bind("/about", f"{POD}/volumes/kubernetes.io~downward-api/about")
    assert form(SPEC | {"mounts": [mount]}).unmeasured == {'volume downward-api "about"'}


def test_another_pod_of_the_same_manifest_has_the_same_form() -> None:
    text = repr(SPEC)
    for before, after in (
        (UID, "11111111-a81d-4e76-a51e-0ce6edfa6c3a"),
        (SANDBOX, "be" * 32),
        (CONTAINER, "7f" * 32),
        ("25924", "7"),
        ("x7k2p", "abcde"),
        ("0a1b2c3d", "ffffffff"),
        ("web-1", "web-2"),
        ("10.96.0.1", "10.0.0.1"),
        ("985", "2"),
    ):
        text = text.replace(before, after)
    around = Surroundings(
        pod_uid="11111111-a81d-4e76-a51e-0ce6edfa6c3a", sandbox_id="be" * 32, sandbox_pid=7
    )
    other = canonical("main", IMAGE, eval(text), around, container_id="7f" * 32)
    assert other == form(SPEC)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("process.args.1", "--write"),
        ("process.args.+", "more"),
        ("process.env.2", "MODE=debug"),
        ("process.env.+", "LD_PRELOAD=/x.so"),
        ("process.env.+", "MODE=production"),
        ("process.env.1", "HOSTNAME=a b"),
        ("process.env.3", "KUBERNETES_SERVICE_HOST=evil.example"),
        ("process.env.5", "KUBERNETES_PORT=file:///x"),
        ("process.cwd", "/tmp"),
        ("process.user.uid", 1),
        ("process.user.additionalGids", [0, 6]),
        ("process.capabilities.ambient", ["CAP_SYS_ADMIN"]),
        ("process.noNewPrivileges", False),
        ("process.apparmorProfile", "x"),
        ("process.terminal", True),
        ("root.readonly", True),
        ("mounts.1.source", "/etc/hosts"),
        ("mounts.1.destination", "/x"),
        ("mounts.1.options", ["rbind", "rshared", "rw"]),
        ("mounts.2.source", f"{POD}/containers/main/../../../../x"),
        ("mounts.3.source", f"/evil/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/resolv.conf"),
        ("mounts.3.destination", "/x"),
        ("mounts.4.source", f"{POD}/volumes/kubernetes.io~empty-dir/other"),
        ("mounts.5.source", f"{POD}/volumes/kubernetes.io~configmap/other"),
        ("mounts.5.source", f"{POD}/volumes/kubernetes.io~configmap/../x"),
        ("mounts.6.source", f"{POD}/volumes/kubernetes.io~projected/other"),
        ("mounts.+", bind("/x", "/")),
        ("linux.namespaces.0", {"type": "pid", "path": "/proc/1/ns/pid"}),
        ("linux.namespaces.1", {"type": "ipc", "path": "/proc/259240/ns/ipc"}),
        ("linux.namespaces.1", {"type": "ipc", "path": "/proc/25924/ns/../../1/ns/ipc"}),
        ("linux.namespaces.1", {"type": "ipc", "path": "/proc/25924/ns/net"}),
        ("linux.namespaces", [{"type": "mount"}]),
        ("linux.maskedPaths", []),
        ("linux.seccomp", None),
        ("linux.devices", [{"path": "/dev/mem"}]),
        ("linux.resources.devices", [{"allow": True, "access": "rwm"}]),
        ("linux.sysctl", {"kernel.core_pattern": "|/x"}),
        ("linux.uidMappings", [{"containerID": 0, "hostID": 0, "size": 1}]),
        ("annotations.run.oci", "x"),
        ("hooks", {"prestart": [{"path": "/x"}]}),
    ],
)
def test_whatever_is_changed_changes_the_digest(path: str, value: Any) -> None:
    if path.startswith("annotations."):
        spec = copy.deepcopy(SPEC)
        spec["annotations"]["run.oci.keep_original_groups"] = value
    else:
        spec = changed(path, value)
    assert form(spec).digest != form(SPEC).digest


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("surprise", 1, "unknown key 'surprise'"),
        ("process.surprise", 1, "unknown key 'surprise'"),
        ("linux.surprise", 1, "unknown key"),
        ("linux.resources.surprise", {}, "unknown key"),
        ("linux.namespaces.0.surprise", 1, "unknown key"),
        ("mounts.0.surprise", 1, "unknown key"),
        ("process.user.surprise", 1, "unknown key"),
        ("process.args", "text", "is not a list"),
        ("process.env.0", 7, "is not text"),
        ("mounts.0.source", None, "without source"),
        ("linux", None, "is not an object"),
        ("linux.cgroupsPath", "/kubepods/other", "cgroupsPath"),
    ],
)
def test_an_unknown_form_is_refused(path: str, value: Any, why: str) -> None:
    with pytest.raises(WorkloadError, match=why) as caught:
        form(changed(path, value))
    assert caught.value.reason == "cri_unknown_shape"


@pytest.mark.parametrize("key", ["sandbox-id", "sandbox-uid", "container-name", "container-type"])
def test_the_runtimes_own_annotations_are_checked(key: str) -> None:
    spec = copy.deepcopy(SPEC)
    spec["annotations"][f"io.kubernetes.cri.{key}"] = "another"
    with pytest.raises(WorkloadError, match="the annotation"):
        form(spec)


@given(st.lists(st.text(max_size=20), max_size=5), st.lists(st.text(max_size=20), max_size=5))
def test_no_value_forges_a_line(one: list[str], other: list[str]) -> None:
    first, second = form(changed("process.args", one)), form(changed("process.args", other))
    assert (first.digest == second.digest) == (one == other)
    assert not any("\n" in line for line in first.lines)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=10))
def test_anything_else_raises_our_errors_only(value: Any) -> None:
    for spec in (value, {"process": value}, {**SPEC, "mounts": value}, {**SPEC, "linux": value}):
        try:
            form(spec)
        except WorkloadError:
            continue


def test_membership() -> None:
    def digest(digit: str) -> str:
        return "sha256:" + digit * 64

    def container(digit: str, attempt: int = 0, *unmeasured: str) -> SeenContainer:
        return SeenContainer(
            name=f"c{digit}",
            attempt=attempt,
            image=IMAGE,
            digest=digest(digit),
            unmeasured=unmeasured,
        )

    contents = PodContents(
        sandbox=digest("0"), containers=(digest("1"), digest("2")), unmeasured=("volume x",)
    )
    pod = SeenPod(uid=UID, pid=1, digest=digest("0"), unmeasured=())
    assert pod.holds(contents)  # nothing has started yet
    pod.containers["a"] = container("1", 0, "volume x")
    pod.find_gaps()
    assert pod.holds(contents)  # a missing one is not a fault
    pod.containers["b"] = container("3")
    assert pod.differs(contents) == (f"container c3 (attempt 0) {digest('3')}",)
    del pod.containers["b"]
    pod.containers["a"] = container("1", 0, "volume y")
    assert pod.differs(contents) == ("unmeasured: volume y",)
    pod.containers["a"] = container("1", 2)
    pod.find_gaps()
    assert not pod.holds(contents)
    assert "attempt 1 of c1 was never seen" in pod.missed
    far = SeenPod(uid=UID, pid=1, digest=digest("0"), unmeasured=())
    far.containers["a"] = container("1", 0)
    far.containers["b"] = container("1", 2**32 - 1)  # the runtime's number costs no work
    far.find_gaps()
    assert "attempt 1 of c1 was never seen" in far.missed
    swapped = contents.model_copy(update={"containers": contents.containers[::-1]})
    assert swapped.digest == contents.digest


@pytest.mark.parametrize("number", ["1e999", "-1e999", "null", '"x"', "[]"])
def test_a_damaged_file_of_what_was_seen_is_forgotten(tmp_path: Path, number: str) -> None:
    pod = {"uid": "u", "pid": 0, "digest": "", "unmeasured": [], "missed": "", "containers": {}}
    text = json.dumps({"format": 1, "pods": {"s": pod}}).replace('"pid": 0', f'"pid": {number}')
    (tmp_path / "seen.json").write_text(text)
    assert not SeenPods(CriSettings(), tmp_path / "seen.json", started_ns=0).pods


def test_a_pod_s_author_cannot_make_looks_and_log_lines_long() -> None:
    """The agent compares unmeasured parts at every look at a caller of the pod."""
    mounts = [bind(f"/{number}", f"/host/{number}") for number in range(1024)]
    found = form(SPEC | {"mounts": mounts})
    assert len(found.unmeasured) == 1024
    with pytest.raises(WorkloadError, match="1025 mounts"):
        form(SPEC | {"mounts": [*mounts, bind("/more", "/more")]})
    long = tuple(each + "x" * 4000 for each in sorted(found.unmeasured))
    pod = SeenPod(uid=UID, pid=1, digest="", unmeasured=long)
    why = unlisted(pod, [PodContents(sandbox=IMAGE, containers=(IMAGE,))]).message
    assert len(why) < 6000
    assert why.endswith("and 1009 more")


async def test_long_descriptions_are_not_read_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hundreds of thousands of arguments take a second, whether they can be executed or not."""
    read_in: list[int] = []

    def measured(*given: Any, **named: Any) -> CanonicalContainer:
        read_in.append(threading.get_ident())
        return canonical(*given, **named)

    monkeypatch.setattr("sds.workload.cri.pods.canonical", measured)
    seen = SeenPods(CriSettings(), None, started_ns=0)
    said = DescribedContainer(pid=25924, spec=SPEC, image=IMAGE, pod_uid=UID, created_at=1)
    pod = SeenPod(uid=UID, pid=25924, digest="", unmeasured=())
    listed = Listed(
        id=CONTAINER, sandbox_id=SANDBOX, name="main", attempt=0, image=IMAGE, alive=True
    )
    assert await seen.add_container(pod, listed, said) == form(SPEC).digest
    assert read_in
    assert threading.get_ident() not in read_in


def test_what_is_nested_as_deeply_as_can_be_read_is_an_error_of_ours() -> None:
    """The runtime's answer about one container must not end the looks at all others."""
    spec = copy.deepcopy(SPEC)
    found: list[BaseException | None] = []

    def work() -> None:  # as the agent does it: in a thread, from few frames
        for depth in range(1, 100_000):
            try:
                spec["process"]["rlimits"] = json.loads("[" * depth + "]" * depth)
            except RecursionError:
                return
            if depth < sys.getrecursionlimit() - 50:
                continue
            try:
                canonical("main", IMAGE, spec, AROUND, container_id=CONTAINER)
            except BaseException as error:  # noqa: BLE001  seen in the other thread
                found.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found
    assert all(isinstance(one, WorkloadError) for one in found), found
