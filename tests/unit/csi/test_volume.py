"""Which requests of the kubelet name a volume of a pod, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sds._proto.csi.v1 import csi_pb2
from sds.csi.volume import EPHEMERAL, POD_UID, at_target, published, recorded
from sds.errors import WorkloadError
from tests.support.refusals import refused

if TYPE_CHECKING:
    from collections.abc import Mapping

KUBELET = Path("/var/lib/kubelet")
UID = "0b9ba2a2-5f0c-4f3e-8f6c-0c7a7bd1f3c1"
TARGET = f"/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~csi/sds/mount"


def request(
    target: str = TARGET,
    *,
    readonly: bool = True,
    block: bool = False,
    context: Mapping[str, str] | None = None,
) -> csi_pb2.NodePublishVolumeRequest:
    capability = csi_pb2.VolumeCapability()
    if block:
        capability.block.SetInParent()
    else:
        capability.mount.SetInParent()
    return csi_pb2.NodePublishVolumeRequest(
        volume_id="csi-1",
        target_path=target,
        volume_capability=capability,
        readonly=readonly,
        volume_context={POD_UID: UID, EPHEMERAL: "true", **(context or {})},
    )


def test_a_volume_is_known_by_its_path() -> None:
    volume = published(request(), kubelet=KUBELET)
    assert (volume.pod_uid, volume.name, volume.target) == (UID, "sds", Path(TARGET))
    static = TARGET.replace(UID, "a" * 32)
    assert at_target(static, kubelet=KUBELET).pod_uid == "a" * 32


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (request(readonly=False), "readOnly: true"),
        (request(block=True), "block device"),
        (request(context={EPHEMERAL: "false"}), "ephemeral"),
        (request(context={POD_UID: UID.replace("0b", "0c")}), "the request names pod '0c"),
        (request(context={POD_UID: ""}), "podInfoOnMount"),
    ],
)
def test_what_breaks_a_rule_is_refused(asked: csi_pb2.NodePublishVolumeRequest, text: str) -> None:
    with refused("csi_volume", match=text):
        published(asked, kubelet=KUBELET)


def test_a_refusal_is_short_whatever_the_request_says() -> None:
    for asked in (request(context={POD_UID: "a" * 100_000}), request(target="/" * 100_000)):
        with pytest.raises(WorkloadError) as raised:
            published(asked, kubelet=KUBELET)
        assert len(str(raised.value)) < 1_000


@pytest.mark.parametrize(
    "target",
    [
        "",
        "mount",
        "/etc",
        TARGET + "/",
        TARGET + "/more",
        TARGET.removesuffix("/mount"),
        TARGET.replace("/sds/", "/../sds/"),
        TARGET.replace("/sds/", "/./sds/"),
        TARGET.replace("/sds/", "/SDS/"),
        TARGET.replace("/sds/", "/" + "a" * 64 + "/"),
        TARGET.replace("~csi", "~empty-dir"),
        TARGET.replace(UID, UID.upper()),
        TARGET.replace(UID, ".."),
        TARGET.replace("/var/lib/kubelet", "/var/lib/other"),
        "/var/lib/kubelet/pods/../.." + TARGET,
    ],
)
def test_another_path_is_refused(target: str) -> None:
    with refused("csi_volume", match="not where the kubelet puts"):
        at_target(target, kubelet=KUBELET)


@given(st.text(max_size=200))
def test_no_text_escapes_the_kubelets_directory(text: str) -> None:
    for target in (text, f"/var/lib/kubelet/pods/{text}/volumes/kubernetes.io~csi/sds/mount"):
        try:
            volume = at_target(target, kubelet=KUBELET)
        except WorkloadError:
            continue
        assert volume.target.resolve().is_relative_to(KUBELET / "pods" / volume.pod_uid)


def test_the_kubelets_record_names_the_driver() -> None:
    mine = json.dumps({"driverName": "csi.attested-sds", "volumeLifecycleMode": "Ephemeral"})
    target = Path(TARGET)
    found = recorded(mine.encode(), target=target, driver="csi.attested-sds", kubelet=KUBELET)
    assert found is not None
    assert found.pod_uid == UID
    assert recorded(mine.encode(), target=target, driver="other", kubelet=KUBELET) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{", b"[" * 60_000, b"NaN"])
def test_a_broken_record_is_refused(content: bytes) -> None:
    with refused("csi_volume", match="vol_data.json"):
        recorded(content, target=Path(TARGET), driver="csi.attested-sds", kubelet=KUBELET)
