"""Decides what may start in which sandbox: pure functions of canonical forms.

Owns :class:`AdmittedSandbox` and the decisions. Invariants: one rule lists everything that was
admitted to one sandbox, so that no container of another pod joins it; a decision rests on the
digest of a canonical form (:mod:`sds.workload.cri.canonical`), which also identifies the pod to the
agent's ``cri`` attestor; a refusal changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sds.errors import WorkloadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sds.workload.cri.canonical import CanonicalContainer
    from sds.workload.cri.settings import PodContents


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedContainer:
    """A container that was admitted.

    Attributes:
        name: the container's name in its pod.
        digest: the digest of its canonical form.
        unmeasured: the parts of it that nothing measures.
    """

    name: str
    digest: str
    unmeasured: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmittedSandbox:
    """A sandbox that was admitted, and every kind of container that ever was in it.

    Attributes:
        pod_uid: the pod's UID.
        digest: the digest of the sandbox's canonical form.
        unmeasured: the parts of the sandbox that nothing measures.
        pid_file: where runc writes the pid of its first process.
        admitted_at: when, in monotonic seconds of this boot.
        containers: the containers by ID; of equal ones, the last.
    """

    pod_uid: str
    digest: str
    unmeasured: tuple[str, ...]
    pid_file: str
    admitted_at: float
    containers: Mapping[str, AdmittedContainer] = field(default_factory=dict)

    def with_container(
        self, identifier: str, name: str, found: CanonicalContainer
    ) -> AdmittedSandbox:
        """Return the sandbox with one more container."""
        unmeasured = tuple(sorted(found.unmeasured))
        new = AdmittedContainer(name=name, digest=found.digest, unmeasured=unmeasured)
        # A container that crashes starts again and again: its earlier, equal ones are over.
        others = {key: each for key, each in self.containers.items() if each != new}
        return replace(self, containers={**others, identifier: new})


def admit_sandbox(found: CanonicalContainer, pods: Iterable[PodContents], *, about: str) -> None:
    """Check that one rule lists a sandbox that is about to start.

    Args:
        found: the sandbox's canonical form.
        pods: the rules.
        about: why there may be no rule, for the message; or the empty string.

    Raises:
        WorkloadError: ``admission_not_listed``.
    """
    for pod in pods:
        if pod.sandbox == found.digest and set(found.unmeasured) <= set(pod.unmeasured):
            return
    raise _refused(f"no rule lists the sandbox {found.digest}{_more(found)}", about)


def admit_container(
    sandbox: AdmittedSandbox, pods: Iterable[PodContents], *, what: str, about: str
) -> None:
    """Check that one rule lists the sandbox with a container that is about to start in it.

    Args:
        sandbox: the sandbox, which includes the new container already.
        pods: the rules.
        what: the container, in words.
        about: as for :func:`admit_sandbox`.

    Raises:
        WorkloadError: ``admission_not_listed``.
    """
    if not any(_lists(pod, sandbox) for pod in pods):
        raise _refused(
            f"no rule lists {what} beside what runs in the pod already"
            if len(sandbox.containers) > 1
            else f"no rule lists {what} in the sandbox {sandbox.digest}",
            about,
        )


def admit_exec(
    sandbox: AdmittedSandbox,
    found: CanonicalContainer,
    pods: Iterable[PodContents],
    *,
    what: str,
    about: str,
) -> None:
    """Check that one rule lists a process that is about to start in a container of the sandbox.

    Raises:
        WorkloadError: ``admission_not_listed``.
    """
    if not any(found.digest in pod.execs and _lists(pod, sandbox) for pod in pods):
        raise _refused(f"no rule lists the process {found.digest} ({what}) under execs", about)


def _lists(pod: PodContents, sandbox: AdmittedSandbox) -> bool:
    unmeasured = set(sandbox.unmeasured).union(
        *(each.unmeasured for each in sandbox.containers.values())
    )
    return (
        pod.sandbox == sandbox.digest
        and unmeasured <= set(pod.unmeasured)
        and all(each.digest in pod.containers for each in sandbox.containers.values())
    )


def _more(found: CanonicalContainer) -> str:
    return f" with {', '.join(sorted(found.unmeasured))}" if found.unmeasured else ""


def _refused(what: str, about: str) -> WorkloadError:
    return WorkloadError(f"{what}; {about}" if about else what, reason="admission_not_listed")
