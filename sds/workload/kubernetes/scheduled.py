"""Which pods run on which node, for an authority that certifies them.

Owns :class:`ScheduledPods`. Invariant: a pod counts from its scheduling to its deletion, under the
node and account that the API server reports; static pods have no account and never count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sds.workload.kubernetes.pods import OVER, read_name
from sds.workload.kubernetes.watch import MOST_OBJECTS, ListAgainError

if TYPE_CHECKING:
    from collections.abc import Sequence

PODS_PATH: Final = "/api/v1/pods"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledPod:
    """A pod on a node."""

    uid: str
    node: str
    namespace: str
    service_account: str


class ScheduledPods:
    """Keeps pods by node; a :class:`sds.workload.kubernetes.watch.Collection`."""

    kind: Final = "PodList"

    def __init__(self) -> None:
        self._by_uid: dict[str, ScheduledPod] = {}
        self._of_node: dict[str, dict[str, ScheduledPod]] = {}
        """The same pods by node, so that a question about one node costs nothing for the others."""

    def begin(self) -> None:
        """Expect the objects of a new list: nothing is counted."""

    def read(self, item: dict[str, Any]) -> ScheduledPod | None:
        return _pod(item)

    def replace(self, kept: Sequence[ScheduledPod | None]) -> bool:
        """Keep exactly these pods, and say whether anything changed."""
        fresh = {pod.uid: pod for pod in kept if pod is not None}
        changed = fresh != self._by_uid
        self._by_uid, self._of_node = fresh, {}
        for pod in fresh.values():
            self._of_node.setdefault(pod.node, {})[pod.uid] = pod
        return changed

    def apply(self, kind: str, item: dict[str, Any]) -> bool:
        """Apply one event of a watch, and say whether anything changed.

        Raises:
            ListAgainError: the watch told of more pods than a list can have.
        """
        pod, uid = _pod(item), str(item["metadata"]["uid"])
        before = self._by_uid.pop(uid, None)
        if before is not None:
            there = self._of_node[before.node]
            del there[uid]
            if not there:  # a cluster that scales has nodes without end
                del self._of_node[before.node]
        if kind == "DELETED" or pod is None:
            return before is not None
        if len(self._by_uid) >= MOST_OBJECTS:
            raise ListAgainError
        self._by_uid[uid] = self._of_node.setdefault(pod.node, {})[uid] = pod
        return before != pod

    def runs(self, uid: str, node: str) -> bool:
        """Say whether the pod with this UID is on this node."""
        pod = self._by_uid.get(uid)
        return pod is not None and pod.node == node

    def accounts(self, node: str) -> frozenset[tuple[str, str]]:
        """Return namespace and service account of every pod of the node."""
        return frozenset(
            (pod.namespace, pod.service_account) for pod in self._of_node.get(node, {}).values()
        )


def _pod(item: dict[str, Any]) -> ScheduledPod | None:
    """Read a pod; None if it is not on a node, is over, or has no account."""
    metadata, spec = item["metadata"], item.get("spec") or {}
    node, account = spec.get("nodeName"), spec.get("serviceAccountName")
    if not node or not account or (item.get("status") or {}).get("phase") in OVER:
        return None
    return ScheduledPod(
        uid=read_name(metadata["uid"]),
        node=read_name(node),
        namespace=read_name(metadata["namespace"]),
        service_account=read_name(account),
    )
