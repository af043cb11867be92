"""Reads from the kubelet's pod list what attestation needs.

Owns the form of the answer to ``GET /pods`` (a ``v1.PodList``). Invariant: pods are found by
``metadata.uid`` and by nothing else; labels and annotations, which a pod's author writes, never
lead to a pod.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from sds.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_CONTAINER_ID: Final = re.compile(r"[a-z0-9.+-]+://([0-9a-f]{64})", re.ASCII)
_DIGEST: Final = re.compile(r"(?:.*@)?(sha256:[0-9a-f]{64})", re.ASCII)
OVER: Final = frozenset({"Succeeded", "Failed"})
MOST_LABELS: Final = 256
"""The most labels of a pod that are looked at; its author may write tens of thousands."""
_MOST_NAME: Final = 253
"""Characters of a name (Kubernetes, "Object Names and IDs")."""
_STATUSES: Final = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container that runs or ran.

    Attributes:
        name: the container's name in the pod.
        image_digest: ``sha256:…`` of what runs, as the runtime verified it, or None. It is the
            manifest's digest if the image was pulled from a registry, and the configuration's
            digest if it was loaded from an archive.
    """

    name: str
    image_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod of this node.

    Attributes:
        uid: the UID as in control-group paths; for a static pod it is the kubelet's own, not the
            API's.
        namespace: the pod's namespace.
        name: the pod's name.
        service_account: None for static pods, which have none.
        node: the node's name.
        labels: the pod's labels; of more than :data:`MOST_LABELS` one more than that.
        containers: maps container IDs (64 hexadecimal digits) to containers of every kind.
        over: whether it has ended for good.
    """

    uid: str
    namespace: str
    name: str
    service_account: str | None
    node: str
    labels: Mapping[str, str]
    containers: Mapping[str, Container]
    over: bool = False


def by_uid(kind: Any, pods: Sequence[Pod]) -> dict[str, Pod]:
    """Return the pods of a list by their UIDs.

    Args:
        kind: what the list says that it is.
        pods: all of it.

    Raises:
        KubernetesError: ``kubelet``: it is not a list of pods, or has one twice.
    """
    if kind != "PodList":
        raise KubernetesError("the kubelet's answer is not a PodList", reason="kubelet")
    found = {pod.uid: pod for pod in pods}
    if len(found) != len(pods):
        raise KubernetesError("the kubelet lists two pods with the same UID", reason="kubelet")
    return found


def read_pod(item: Any) -> Pod:
    """Read one object of the list.

    Raises:
        TypeError, KeyError, AttributeError: it is not a pod.
    """
    metadata, spec = item["metadata"], item.get("spec") or {}
    status = item.get("status") or {}
    account = spec.get("serviceAccountName")
    return Pod(
        uid=_text(metadata["uid"]),
        namespace=_text(metadata["namespace"]),
        name=_text(metadata["name"]),
        service_account=_text(account) if account else None,
        node=_text(spec.get("nodeName") or ""),
        labels=MappingProxyType(
            {
                _text(key): _text(value)
                for key, value in itertools.islice(
                    (metadata.get("labels") or {}).items(), MOST_LABELS + 1
                )
            }
        ),
        containers=MappingProxyType(dict(_containers(status))),
        over=status.get("phase") in OVER,
    )


def _containers(status: dict[str, Any]) -> Iterator[tuple[str, Container]]:
    for kind in _STATUSES:
        for each in status.get(kind) or ():
            match = _CONTAINER_ID.fullmatch(_text(each.get("containerID") or ""))
            if match is None:  # it is not created yet, or the runtime's IDs have another form
                continue
            digest = _DIGEST.fullmatch(_text(each.get("imageID") or ""))
            yield (
                match[1],
                Container(name=_text(each["name"]), image_digest=digest[1] if digest else None),
            )


def _text(value: Any) -> str:
    """Return text that can be written as UTF-8: JSON may have half of a character."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def read_name(value: Any) -> str:
    """Return the name or UID of an object.

    Raises:
        TypeError, ValueError: it is not one; those that come over a watch are kept.
    """
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of a name")
    if len(value) > _MOST_NAME or not value.isascii():
        raise ValueError("a name that Kubernetes does not permit")
    return value
