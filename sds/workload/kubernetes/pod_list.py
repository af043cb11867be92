"""A pod list that many callers can ask for while the kubelet is asked rarely.

Owns the cache and the one task that fetches. Invariants: all callers that wait share one fetch; the
gap between two fetches grows while somebody still waits; an older list still counts for what cannot
change in a pod (UID, namespace, account); no failure empties the list.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from sds.backoff import sleep_unless
from sds.errors import KubernetesError, without_frames
from sds.listeners import Listeners
from sds.workload.kubernetes.lists import at_most, read_list
from sds.workload.kubernetes.pods import by_uid, read_pod

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from sds.clock import Clock
    from sds.workload.kubernetes.pods import Pod

_LOG = logging.getLogger("sds.workload.kubernetes")
_FIRST_GAP = 0.1
_LONGEST_GAP = 1.0
_LONGEST_GAP_AFTER_ERROR = 5.0
_LONGEST_LATER: Final = 30.0
"""The most seconds that the kubelet's Retry-After counts for: callers wait for their pods."""
_MOST_PODS: Final = 10_000
"""Of one node; the kubelet's own bound is 110 unless somebody raised it."""


class KubeletPods(Protocol):
    """The kubelet, as the pod list uses it."""

    def chunks(self, path: str) -> AsyncGenerator[bytes, None]:
        """Yield the body of ``GET path`` as it comes.

        Raises:
            KubernetesError: ``kubelet``: there is none.
        """
        ...


class PodList:
    """The pods of this node, which :meth:`run` fetches."""

    def __init__(
        self, kubelet: KubeletPods, clock: Clock, *, every_seconds: float | None = None
    ) -> None:
        """Fetch when somebody asks and, with ``every_seconds``, at that interval too."""
        self._every = every_seconds
        self._read = b""
        """The SHA-256 of the answer that was read last, if it was short."""
        self._listeners: Listeners[[]] = Listeners()
        self.fetches = 0
        self.error: KubernetesError | None = None
        self._kubelet = kubelet
        self._clock = clock
        self._pods: dict[str, Pod] = {}
        self._fetched_at: float | None = None
        self._demand = asyncio.Event()
        self._published = asyncio.Event()
        self._gap = _FIRST_GAP
        self._later = 0.0
        """The seconds for which the kubelet asked to be left alone."""

    @property
    def size(self) -> int:
        """Return how many pods are known."""
        return len(self._pods)

    def running(self) -> dict[str, Pod]:
        """Return the pods of the last list that have not ended, by UID."""
        return {uid: pod for uid, pod in self._pods.items() if not pod.over}

    def get(self, uid: str) -> Pod | None:
        """Return the pod with this UID in the last list."""
        return self._pods.get(uid)

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` when a list differs from the one before, until the result is called."""
        return self._listeners.add(listener)

    async def run(self) -> None:
        """Fetch whenever somebody waits, and at the interval if there is one, until cancelled."""
        ended = float("-inf")
        while True:
            if self._every is None:
                await self._demand.wait()
            else:
                await sleep_unless(self._demand, self._clock, self._every)
            idle = self._clock.now().monotonic - ended
            self._grow_gap(idle)
            await self._clock.sleep(max(self._gap, self._later) - idle)
            self._demand.clear()
            await self._fetch()
            ended = self._clock.now().monotonic
            self._published.set()
            self._published = asyncio.Event()

    async def find(
        self,
        uid: str,
        *,
        enough: Callable[[Pod], bool],
        max_age: float,
        patience: float,
    ) -> Pod:
        """Return the pod with this UID.

        Args:
            uid: the pod's UID.
            enough: says whether an entry has everything that is needed.
            max_age: the oldest list that is good enough, in seconds; if the kubelet does not
                answer, an older one is too.
            patience: the longest wait, in seconds.

        Raises:
            KubernetesError: ``kubelet``: the kubelet does not list the pod (or not enough about it)
                in time.
        """
        try:
            async with asyncio.timeout(patience):
                while True:
                    pod = self._pods.get(uid)
                    good = pod is not None and enough(pod)
                    if pod is not None and good and (self._age() <= max_age or self.error):
                        self._refresh_in_background(max_age)
                        return pod
                    self._demand.set()
                    await self._published.wait()
        except TimeoutError:
            pod = self._pods.get(uid)
            if pod is not None and enough(pod):
                return pod
            raise self._why_not(uid, pod) from None

    def _refresh_in_background(self, max_age: float) -> None:
        if self._age() > max_age:
            self._demand.set()

    def _age(self) -> float:
        if self._fetched_at is None:
            return float("inf")
        return self._clock.now().monotonic - self._fetched_at

    def _grow_gap(self, idle: float) -> None:
        """Wait longer if asked again at once, and start afresh after a rest."""
        most = _LONGEST_GAP if self.error is None else _LONGEST_GAP_AFTER_ERROR
        self._gap = min(self._gap * 2, most) if idle < self._gap else _FIRST_GAP

    async def _fetch(self) -> None:
        began = self._clock.now().monotonic
        self.fetches += 1
        try:
            fresh = await self._fresh()
        except KubernetesError as error:
            if self.error is None or str(self.error) != str(error):
                _LOG.warning("the kubelet's list of pods cannot be read", extra={"why": error})
            self.error = without_frames(error)
            self._later = min(error.later, _LONGEST_LATER)
            return
        self._later = 0.0
        if fresh is not None:
            pods, self._read = fresh
            changed, self._pods = pods != self._pods or self._fetched_at is None, pods
        else:
            changed = False
        if self.error is not None:
            _LOG.info(
                "the kubelet's list of pods can be read again", extra={"pods": len(self._pods)}
            )
        self.error = None
        self._fetched_at = began
        if changed:
            self._listeners.tell()

    async def _fresh(self) -> tuple[dict[str, Pod], bytes] | None:
        """Return the pods that the kubelet lists and the answer's SHA-256; None if it is as before.

        Raises:
            KubernetesError: ``kubelet``: it does not answer, or with something else.
        """
        pods: list[Pod] = []
        take = at_most(_MOST_PODS, pods, read_pod)
        try:
            answer = await read_list(self._kubelet.chunks("/pods"), take, known=self._read)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise KubernetesError(
                f"the kubelet's list of pods is malformed: {error!r}", reason="kubelet"
            ) from error
        if answer is None:
            return None
        fields, digest = answer
        return by_uid(fields.get("kind"), pods), digest

    def _why_not(self, uid: str, pod: Pod | None) -> KubernetesError:
        if self.error is not None:
            return self.error
        if self._fetched_at is None:
            return KubernetesError("the kubelet has not answered yet", reason="kubelet")
        what = f"pod {uid}" if pod is None else f"the container in pod {pod.namespace}/{pod.name}"
        return KubernetesError(f"the kubelet does not list {what} yet", reason="kubelet")
