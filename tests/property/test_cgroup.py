"""Properties of the cgroup parser: the outermost pod counts, whatever is nested or mixed in."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from sds.errors import CgroupError
from sds.workload.cgroup import PodCgroup, PodRoots

POD_UIDS = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda value: value.hex),
)
CONTAINER_IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)
HIERARCHIES = ["", "memory", "cpu", *(f"c{number}" for number in range(2, 40))]
ROOTS = PodRoots.of(
    "".join(f"{number}:{name}:/init.scope\n" for number, name in enumerate(HIERARCHIES)),
    inside=False,
)
parse_cgroup = ROOTS.find
OTHERS = st.sampled_from(["/", "/system.slice/x.service", "/init.scope"])
NAMES = st.one_of(
    st.sampled_from(["kubepods", "burstable", "user.slice", "a", "kubepods.slice", "x.service"]),
    st.text("abc-_.0", min_size=1, max_size=8),
)
QOS = st.sampled_from(["", "burstable", "besteffort"])


@st.composite
def pod_paths(draw: st.DrawFn) -> tuple[str, PodCgroup]:
    uid, container = draw(POD_UIDS), draw(CONTAINER_IDS)
    qos = draw(QOS)
    if draw(st.booleans()):
        path = "/".join(["/kubepods", *([qos] if qos else []), f"pod{uid}", container])
    else:
        names = ["kubepods", *([qos] if qos else [])]
        slices = ["-".join(names[: count + 1]) + ".slice" for count in range(len(names))]
        runtime = draw(st.sampled_from(["cri-containerd", "crio", "docker", "libpod"]))
        pod = "-".join([*names, f"pod{uid.replace('-', '_')}"]) + ".slice"
        path = "/" + "/".join([*slices, pod, f"{runtime}-{container}.scope"])
    return path, PodCgroup(pod_uid=uid, container_id=container)


@given(pod_paths(), st.lists(pod_paths(), max_size=2), st.text("abc/-_.0", max_size=30))
def test_what_is_nested_inside_a_pod_changes_nothing(
    outer: tuple[str, PodCgroup], inner: list[tuple[str, PodCgroup]], tail: str
) -> None:
    path, expected = outer
    nested = path + "".join(other for other, _ in inner) + "/" + tail
    assert parse_cgroup(f"0::{nested}\n") == expected


@given(pod_paths(), st.lists(OTHERS, max_size=30))
def test_lines_without_a_pod_change_nothing(pod: tuple[str, PodCgroup], others: list[str]) -> None:
    path, expected = pod
    lines = [f"{number}:c{number}:{other}" for number, other in enumerate(others, 2)]
    assert parse_cgroup("\n".join([*lines, f"1:memory:{path}", ""])) == expected


@given(st.lists(NAMES, min_size=1, max_size=4), pod_paths())
def test_a_pod_below_other_groups_is_never_believed(
    above: list[str], pod: tuple[str, PodCgroup]
) -> None:
    try:
        found = parse_cgroup("0::/" + "/".join(above) + pod[0] + "\n")
    except CgroupError:
        return
    raise AssertionError(f"accepted {found}")


@given(pod_paths(), pod_paths())
def test_two_pods_on_two_lines_are_refused(
    one: tuple[str, PodCgroup], two: tuple[str, PodCgroup]
) -> None:
    text = f"1:cpu:{one[0]}\n2:memory:{two[0]}\n"
    if one[1] == two[1]:
        assert parse_cgroup(text) == one[1]
    else:
        try:
            found = parse_cgroup(text)
        except CgroupError:
            return
        raise AssertionError(f"accepted {found}")


@given(st.text(max_size=300))
def test_any_text_is_parsed_or_refused_and_a_uid_is_always_one(text: str) -> None:
    try:
        found = parse_cgroup(text)
    except CgroupError:
        return
    if found is not None:
        uuid.UUID(found.pod_uid)
