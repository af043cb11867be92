"""Finds which volume of which pod the kubelet means, from its request or from its record.

Owns :class:`PodVolume` and the rules that a volume must follow. Invariants: a volume's path is
exactly where the kubelet puts volumes of a pod, so a request can name no other path; the path alone
says which pod the volume belongs to, and a request that names another pod is refused; a volume that
a container could write to is refused, because the container could replace our socket.

Sources: CSI 1.11, ``NodePublishVolume``; Kubernetes ``pkg/volume/csi/csi_mounter.go`` (paths,
``vol_data.json``) and the documentation of ``podInfoOnMount``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds.errors import WorkloadError

if TYPE_CHECKING:
    from sds._proto.csi.v1 import csi_pb2

POD_UID: Final = "csi.storage.k8s.io/pod.uid"
EPHEMERAL: Final = "csi.storage.k8s.io/ephemeral"
RECORD: Final = "vol_data.json"
MAX_RECORD_BYTES: Final = 64 * 1024
MOST_OF_A_POD: Final = 16
"""The most volumes of one pod: each takes a descriptor, and one is enough for all containers."""
_SHOWN: Final = 300
_PLUGIN_FOLDER: Final = "kubernetes.io~csi"
_UID: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}", re.ASCII
)
# The name of a volume in a pod is a DNS label.
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodVolume:
    """One volume of one pod.

    Attributes:
        pod_uid: the pod's UID from the path, as the kubelet writes it.
        name: the volume's name in the pod.
        target: the directory that the pod's containers see.
    """

    pod_uid: str
    name: str
    target: Path


def published(request: csi_pb2.NodePublishVolumeRequest, *, kubelet: Path) -> PodVolume:
    """Read the volume that a request asks for.

    Args:
        request: the message of ``NodePublishVolume``.
        kubelet: the kubelet's root directory.

    Raises:
        WorkloadError: ``csi_volume``: the volume is not an ephemeral, read-only directory of a pod.
    """
    volume = at_target(request.target_path, kubelet=kubelet)
    context = request.volume_context
    if context.get(EPHEMERAL) != "true":
        raise _refused(
            "the volume is not an ephemeral inline volume",
            advice="declare it as `csi:` in the pod's volumes, and podInfoOnMount in the CSIDriver",
        )
    if not request.readonly:
        raise _refused(
            f"volume {volume.name!r} of pod {volume.pod_uid} can be written to",
            advice="write `readOnly: true` beside `driver` in the pod's volume",
        )
    if request.volume_capability.HasField("block"):
        raise _refused(
            f"volume {volume.name!r} of pod {volume.pod_uid} is a block device",
            advice="mount it as a directory: `volumeMounts`, not `volumeDevices`",
        )
    said = context.get(POD_UID)
    if said != volume.pod_uid:
        raise _refused(
            f"the path is one of pod {volume.pod_uid}, and the request names pod "
            f"{(said or '')[:_SHOWN]!r}",
            advice="set podInfoOnMount: true in the CSIDriver object",
        )
    return volume


def at_target(target: str, *, kubelet: Path) -> PodVolume:
    """Return the volume at a path: ``<kubelet>/pods/UID/volumes/kubernetes.io~csi/NAME/mount``.

    Raises:
        WorkloadError: ``csi_volume``: the path has another form.
    """
    path = Path(target)
    try:
        parts = path.relative_to(kubelet).parts
    except ValueError:
        parts = ()
    expected = 6
    if (
        len(parts) == expected
        and parts[0] == "pods"
        and _UID.fullmatch(parts[1])
        and parts[2:4] == ("volumes", _PLUGIN_FOLDER)
        and _NAME.fullmatch(parts[4])
        and parts[5] == "mount"
        and str(path) == target
    ):
        return PodVolume(pod_uid=parts[1], name=parts[4], target=path)
    raise _refused(
        f"{target[:_SHOWN]!r} is not where the kubelet puts volumes of pods",
        advice=f"check node.csi.kubelet_dir, which is {kubelet}",
    )


def recorded(record: bytes, *, target: Path, driver: str, kubelet: Path) -> PodVolume | None:
    """Return the volume of the kubelet's ``vol_data.json`` if it belongs to this driver, else None.

    Args:
        record: the content of ``vol_data.json``.
        target: the directory ``mount`` beside that file.
        driver: this driver's name.
        kubelet: the kubelet's root directory.

    Raises:
        WorkloadError: ``csi_volume``: the record cannot be read.
    """
    try:
        found = json.loads(record)
    except (ValueError, RecursionError) as error:
        raise _refused(f"{target.parent / RECORD} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise _refused(f"{target.parent / RECORD} is not a JSON object")
    if found.get("driverName") != driver:
        return None
    return at_target(str(target), kubelet=kubelet)


def _refused(message: str, *, advice: str = "") -> WorkloadError:
    return WorkloadError(message, reason="csi_volume", advice=advice)
