"""Finds the lists that contain a pod, and says what of it no list contains.

Owns :class:`PodLists`. Every caller is looked at again and again, the author of a pod chooses how
much is in it, and a policy may list very many pods. Invariants: a pod is compared with the lists
once, until the pod or the lists change; what no list contains is logged once; what is compared only
to explain is bounded.
"""

from __future__ import annotations

import heapq
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.workload.cri.pods import unlisted

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

    from sds.errors import WorkloadError
    from sds.workload.cri.pods import SeenPod
    from sds.workload.cri.settings import PodContents

_LOG = logging.getLogger("sds.workload.cri")
_SHOWN: Final = 3
_SHOWN_TEXT: Final = 500
_COMPARED: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PodVerdict:
    """The lists that have a pod, until it or they change.

    Attributes:
        listed: the policy's lists of this comparison.
        about: what of the pod can change.
        digests: of the lists that have it.
        hints: what no list has, for people.
    """

    listed: tuple[PodContents, ...]
    about: tuple[object, ...]
    digests: frozenset[str]
    hints: tuple[str, ...] = ()


class PodLists:
    """The lists of pods that rules may name.

    Args:
        configured: those of the configuration.
        signed: gives those of the policy in force.
    """

    def __init__(
        self,
        configured: tuple[PodContents, ...],
        signed: Callable[[], tuple[PodContents, ...]],
    ) -> None:
        self._configured = configured
        self._signed = signed
        self._indexed: tuple[PodContents, ...] | None = None
        self._by_sandbox: dict[str, list[PodContents]] = {}
        self._unlisted: dict[str, WorkloadError] = {}

    def judge(self, pod: SeenPod) -> PodVerdict:
        """Say which lists have a pod."""
        listed = self._signed()
        about = (pod.joined, len(pod.containers), pod.missed, pod.unclear)
        before = pod.verdict
        if before is not None and before.listed is listed and before.about == about:
            return before
        like = self.like(pod)
        digests = frozenset(each.digest for each in like if pod.holds(each))
        hints = self._tell_unlisted(pod, () if digests else _nearest(pod, like))
        pod.verdict = PodVerdict(listed=listed, about=about, digests=digests, hints=hints)
        return pod.verdict

    def like(self, pod: SeenPod) -> tuple[PodContents, ...]:
        """Return the lists that this pod may match; a rule names a list by its digest.

        A policy may list very many pods, so this is a look-up. If no list has the pod's sandbox, it
        returns some of the lists, so that people see what differs.
        """
        listed = self._signed()
        if listed is not self._indexed:
            self._indexed, self._by_sandbox = listed, {}
            for each in (*self._configured, *listed):
                self._by_sandbox.setdefault(each.sandbox, []).append(each)
        found = self._by_sandbox.get(pod.digest)
        return tuple(found or (*self._configured, *listed[:_COMPARED]))

    def notices(self) -> list[str]:
        """Return what no list has, for operators."""
        some = list(self._unlisted.items())[:_SHOWN]
        return [f"pod {uid} is not what a list says: {error}" for uid, error in some]

    def keep_only(self, uids: AbstractSet[str]) -> None:
        """Forget pods that are gone."""
        for gone in set(self._unlisted) - uids:
            del self._unlisted[gone]

    def _tell_unlisted(self, pod: SeenPod, pods: tuple[PodContents, ...]) -> tuple[str, ...]:
        """Say what of a caller's pod no list has: once in the log, to people whenever they ask.

        Args:
            pod: the caller's.
            pods: the lists that it may match; none if one has it, or if there are no lists.
        """
        if not pods:
            self._unlisted.pop(pod.uid, None)
            return ()
        why = unlisted(pod, pods)
        before = self._unlisted.get(pod.uid)
        self._unlisted[pod.uid] = why
        if before is None or before.message != why.message:
            _LOG.warning("a pod is not what a list says", extra={"caller": pod.uid, "why": why})
        return (f"the pod is not what a list says: {why.message[:_SHOWN_TEXT]}",)


def _nearest(pod: SeenPod, lists: tuple[PodContents, ...]) -> tuple[PodContents, ...]:
    """Return a few of the lists: those that lack the fewest of the pod's containers."""

    def lacks(contents: PodContents) -> int:
        return sum(one.digest not in contents.containers for one in pod.containers.values())

    return tuple(heapq.nsmallest(_COMPARED, lists, key=lacks))
