"""The attestor itself: one caller's control group, pod, container and Services as facts.

Invariants: a fact that the kubelet does not report yet is *unknown*, so that no rule takes its
absence for an answer; a process outside all pods is known to have no ``k8s`` fact.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.errors import CgroupError, KubernetesError, WorkloadError
from sds.workload.entitlement import Selector
from sds.workload.facts import LABEL_TYPE, Facts
from sds.workload.kubernetes.pods import MOST_LABELS
from sds.workload.kubernetes.selectors import MOST, MOST_OF_A_NAMESPACE
from sds.workload.kubernetes.services import MOST_SERVICES
from sds.workload.proc import read_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from sds.workload.cgroup import PodRoots
    from sds.workload.kubernetes.pod_list import PodList
    from sds.workload.kubernetes.pods import Container, Pod
    from sds.workload.kubernetes.services import ServiceWatch
    from sds.workload.peer import Peer

_SHOWN: Final = 3
CONTAINER_TYPES: Final = frozenset({"k8s:container-name", "k8s:image-digest"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The bounds of one look at a caller, in seconds.

    Attributes:
        kubelet: how long to wait until the kubelet lists the pod (then the caller is looked at
            again).
        services: how long to wait for the first list of Services.
        max_age: the age up to which the labels of a pod list count.
    """

    kubelet: float = 5.0
    services: float = 5.0
    max_age: float = 10.0


class KubernetesAttestor:
    """Finds the selectors ``k8s:…``."""

    name = "kubernetes"
    costly: frozenset[str] = frozenset()

    def __init__(
        self,
        pods: PodList,
        services: ServiceWatch | None,
        *,
        roots: PodRoots,
        waiting: Waiting | None = None,
        read_cgroup: Callable[[Peer], str] = read_cgroup,
    ) -> None:
        """Make an attestor; the caller runs ``pods`` and ``services``.

        Args:
            pods: the kubelet's list.
            services: None if certificates carry no names of Services.
            roots: where pods may be on this node.
            waiting: the bounds of a look.
            read_cgroup: gives the text of a process's control groups.
        """
        self._pods = pods
        self._services = services
        self._waiting = waiting or Waiting()
        self._roots = roots
        self._read_cgroup = read_cgroup

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        """Return the caller's pod, its container and the Services that select the pod.

        If a rule asks for facts of containers, this waits for a container that the kubelet does not
        list yet (it does so 0.2 to 0.5 s after the container's start).

        Raises:
            PeerGoneError: the process has ended.
        """
        try:
            group = self._roots.find(self._read_cgroup(peer))
            peer.check()
            if group is None:
                return Facts()
            pod = await self._pods.find(
                group.pod_uid,
                enough=lambda pod: (
                    not needed & CONTAINER_TYPES or group.container_id in pod.containers
                ),
                max_age=self._waiting.max_age,
                patience=self._waiting.kubelet,
            )
        except (CgroupError, KubernetesError) as error:
            peer.check()
            return Facts(unknown={"k8s:": error}, title=f"pid {peer.pid}")
        peer.check()
        return await self._with_services(_facts(pod, group.container_id), pod)

    async def _with_services(self, facts: Facts, pod: Pod) -> Facts:
        """Add the Services that select the pod to the facts."""
        if self._services is None:
            return facts
        services = await self._services.selecting(
            pod.namespace, pod.labels, patience=self._waiting.services
        )
        if len(services) > MOST_SERVICES:
            why = f"more than {MOST_SERVICES} Services select the pod: none of their names counts"
            return dataclasses.replace(facts, hints=(*facts.hints, why))
        if pod.namespace in self._services.overfull:
            why = f"there is too much in the selectors of namespace {pod.namespace}'s Services"
            why += ": none of their names counts"
            return dataclasses.replace(facts, hints=(*facts.hints, why))
        return dataclasses.replace(facts, services=services)

    # --- sds.workload.minting_ahead.Foresees ----------------------------------------------------

    def coming(self) -> Collection[str]:
        return self._pods.running()

    def started(self, who: str) -> bool:
        pod = self._pods.get(who)
        return pod is not None and bool(pod.containers)

    async def expected(self, who: str) -> Facts:
        pod = self._pods.get(who)
        if pod is None:
            return Facts()
        if self._services is not None and not self._services.synced:
            why = WorkloadError("the Services are not known yet", reason="undetermined")
            return Facts(unknown={"k8s:": why})
        return await self._with_services(_facts(pod, None), pod)

    def listen_coming(self, listener: Callable[[], None]) -> Callable[[], None]:
        stop_pods, stop_services = self._pods.listen(listener), self.listen(listener)

        def stop() -> None:
            stop_pods()
            stop_services()

        return stop

    def notices(self) -> tuple[str, ...]:
        """Return outages of the kubelet and of the API server, in words."""
        found = []
        if self._pods.error:
            found.append(f"new pods are not recognised: {self._pods.error}")
        if self._services is not None and self._services.error:
            found.append(f"Services are not followed: {self._services.error}")
        if self._services is not None and (overfull := sorted(self._services.overfull)):
            more = f" and {len(overfull) - _SHOWN} more" if len(overfull) > _SHOWN else ""
            found.append(
                f"no name of a Service counts in {', '.join(overfull[:_SHOWN])}{more}: selectors "
                f"may take {MOST_OF_A_NAMESPACE >> 20} MiB in a namespace and {MOST >> 20} in all, "
                "and these have the most"
            )
        return tuple(found)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Announce changes of Services; changes of labels are found by looking again."""
        if self._services is None:
            return lambda: None
        return self._services.listen(listener)


def _facts(pod: Pod, container_id: str | None) -> Facts:
    container = pod.containers.get(container_id) if container_id else None
    unknown = {}
    if len(pod.labels) > MOST_LABELS:
        unknown[LABEL_TYPE] = WorkloadError(
            f"pod {pod.namespace}/{pod.name} has more than {MOST_LABELS} labels",
            reason="too_many_facts",
            advice="remove some, or write no rule on labels for it",
        )
    if container is None:
        why = WorkloadError(
            f"the container in pod {pod.namespace}/{pod.name} is not known", reason="undetermined"
        )
        unknown |= dict.fromkeys(CONTAINER_TYPES, why)
    return Facts(
        selectors=frozenset(_selectors(pod, container)),
        unknown=unknown,
        title=f"{pod.namespace}/{pod.name}",
    )


def _selectors(pod: Pod, container: Container | None) -> Iterator[Selector]:
    yield Selector("k8s:ns", pod.namespace)
    yield Selector("k8s:pod-name", pod.name)
    yield Selector("k8s:pod-uid", pod.uid)
    if pod.service_account is not None:
        yield Selector("k8s:sa", pod.service_account)
    if pod.node:
        yield Selector("k8s:node", pod.node)
    if len(pod.labels) <= MOST_LABELS:
        for key, value in pod.labels.items():
            yield Selector(LABEL_TYPE + key, value)
    if container is not None:
        yield Selector("k8s:container-name", container.name)
        if container.image_digest is not None:
            yield Selector("k8s:image-digest", container.image_digest)
