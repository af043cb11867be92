"""The attestor itself: a caller's container and its whole pod as facts.

Invariants: a caller belongs to a container only if it shares mount and PID namespace with the
container's first process, which still runs, so a process that moved itself into another control
group gets nothing, also if that is of a container that has ended and the process has its number; a
container that is not in a pod's list takes ``cri:pod-digest`` from every caller of the pod, within
:data:`POLL_SECONDS` and for as long as the sandbox exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds.errors import CgroupError, PeerGoneError, WorkloadError, without_frames
from sds.faults import report
from sds.listeners import Listeners
from sds.supervision import supervised
from sds.workload.cri.explanations import Explanations
from sds.workload.cri.lists import PodLists
from sds.workload.cri.storing import Storing
from sds.workload.entitlement import Selector
from sds.workload.facts import Facts
from sds.workload.peer import process_start_time
from sds.workload.proc import read_cgroup, read_cgroup_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sds.clock import Clock
    from sds.workload.cgroup import PodCgroup, PodRoots
    from sds.workload.cri.pods import SeenPod, SeenPods
    from sds.workload.cri.runtime import DescribedContainer, Listed, Runtime
    from sds.workload.cri.settings import CriSettings, PodContents
    from sds.workload.peer import Peer

_LOG = logging.getLogger("sds.workload.cri")
POLL_SECONDS: Final = 1.0
_PATIENCE_SECONDS: Final = 5.0
_FIRST_GAP_SECONDS: Final = 0.1
_LATE_SECONDS: Final = 30.0
"""How long what gave no answer in time is not asked about: each question holds up a look."""
_SHOWN: Final = 3
_NAMESPACES: Final = ("mnt", "pid")


class CriAttestor:
    """Finds the selectors ``cri:…``, while :meth:`run` runs."""

    name = "cri"
    costly: frozenset[str] = frozenset()

    def __init__(
        self,
        runtime: Runtime,
        seen: SeenPods,
        settings: CriSettings,
        *,
        roots: PodRoots,
        clock: Clock,
        listed: Callable[[], tuple[PodContents, ...]] = tuple,
    ) -> None:
        """Make an attestor; the caller runs :meth:`run`.

        Args:
            runtime: the runtime of this node.
            seen: remembers what was seen in pods.
            settings: the pods that rules may name.
            roots: where pods may be on this node.
            clock: time.
            listed: more such pods, by the signed policy in force.
        """
        self._runtime = runtime
        self._seen = seen
        self._lists = PodLists(settings.pods, listed)
        self._roots = roots
        self._clock = clock
        self._error: WorkloadError | None = None
        self._first_processes: dict[str, tuple[int, int]] = {}
        """Number and start time of each container's first process."""
        self._refused: dict[str, WorkloadError] = {}
        self._looking = asyncio.Lock()
        self._explanations = Explanations(runtime, clock=clock)
        self._looked_at = float("-inf")
        self._first_list: frozenset[str] | None = None
        """The sandboxes that were listed first; others began after that, whatever clocks say."""
        self._changed = False
        """Whether a look saw something new that is not yet announced."""
        self._late: dict[str, float] = {}
        """Until when what gave no answer in time is not asked about, by container or sandbox."""
        self._unclear: dict[str, str] = {}
        """What this look could not get described now, by sandbox."""
        self._unclear_before: dict[str, str] = {}
        """The same of the look before."""
        self._listeners: Listeners[[]] = Listeners()
        self._storing = Storing(seen, late=self._listeners.tell)

    async def run(self) -> None:
        """Look at every pod at intervals, and store what is seen, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervised("seen pods", self._storing.run, clock=self._clock))
            while True:
                await self._look()
                await self._clock.sleep(POLL_SECONDS)

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        """Return the caller's container and pod, as the runtime of this guest describes them.

        Raises:
            PeerGoneError: the process has ended.
        """
        del needed
        try:
            group = self._roots.find(read_cgroup(peer))
            peer.check()
            if group is None:
                return Facts()
            return await self._facts(peer, group)
        except PeerGoneError:
            raise
        except WorkloadError as error:
            peer.check()
            # A process that does not belong to the container does not belong to the pod either.
            return Facts(unknown={"cri:": error, "k8s:": error}, title=f"pid {peer.pid}")

    async def explain(self, peer: Peer) -> tuple[str, ...]:
        """Compare the caller's container, line by line, with the closest list.

        Raises:
            WorkloadError: the runtime does not answer, or describes it in an unknown way.
        """
        group = self._roots.find(read_cgroup(peer))
        identifier = None if group is None else group.container_id
        if identifier is None:
            return ()
        pods = self._seen.pods.items()
        sandbox_id = next((key for key, pod in pods if identifier in pod.containers), None)
        if sandbox_id is None:
            return ()
        pod = self._seen.pods[sandbox_id]
        self._expect_same_namespaces(peer, identifier)
        around = self._seen.around(sandbox_id, pod)
        known, like = pod.containers[identifier], self._lists.like(pod)
        return await self._explanations.of(identifier, known, around, like)

    def notices(self) -> tuple[str, ...]:
        """Return outages of the runtime, and containers that it describes in an unknown way."""
        found = [] if self._error is None else [f"containers are not followed: {self._error}"]
        found += [str(error) for error in list(self._refused.values())[:_SHOWN]]
        return (*found, *self._lists.notices())

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Announce every new container."""
        return self._listeners.add(listener)

    # --- one caller -----------------------------------------------------------------------------

    async def _facts(self, peer: Peer, group: PodCgroup) -> Facts:
        identifier = group.container_id
        if identifier is None:
            raise WorkloadError("the caller is in a pod but in no container", reason="cri_unseen")
        pod = await self._pod_of(identifier)
        container = pod.containers[identifier]
        if pod.uid != group.pod_uid:
            raise WorkloadError(
                f"the runtime says pod {pod.uid}, and the control group pod {group.pod_uid}",
                reason="cgroup_ambiguous",
            )
        self._expect_same_namespaces(peer, identifier)
        peer.check()
        found = {
            Selector("cri:container-name", container.name),
            Selector("cri:container-digest", container.digest),
            Selector("cri:image-config", container.image),
        }
        verdict = self._lists.judge(pod)
        found |= {Selector("cri:pod-digest", each) for each in verdict.digests}
        title = f"{container.name} of pod {pod.uid}"
        return Facts(selectors=frozenset(found), title=title, hints=verdict.hints)

    async def _pod_of(self, identifier: str) -> SeenPod:
        """Find the pod with this container; wait if it was just created or is only remembered.

        Raises:
            WorkloadError: the runtime does not list it, or describes it in an unknown way.
        """
        until = self._clock.now().monotonic + _PATIENCE_SECONDS
        while True:
            for pod in self._seen.pods.values():
                if (
                    identifier in pod.containers
                    and identifier in self._first_processes
                    and not self._storing.awaits(identifier)
                ):
                    return pod
            if (error := self._refused.get(identifier)) is not None:
                raise without_frames(error)
            if self._clock.now().monotonic >= until:
                raise self._error or self._why_not(identifier)
            if self._storing.awaits(identifier):
                await self._storing.settled()
            else:
                await self._look(not_before=self._looked_at + _FIRST_GAP_SECONDS)

    def _why_not(self, identifier: str) -> WorkloadError:
        if self._storing.awaits(identifier):
            return WorkloadError(
                f"container {identifier[:12]} is not stored yet: the disk does not answer",
                reason="cri_unseen",
                advice="check the file system of the run directory",
            )
        return WorkloadError(
            f"the runtime does not list container {identifier[:12]}", reason="cri_unseen"
        )

    def _expect_same_namespaces(self, peer: Peer, identifier: str) -> None:
        """Refuse a process that moved itself into the container's control group.

        Raises:
            WorkloadError: ``cri_other_namespaces``, or the kernel does not show namespaces.
        """
        first, started = self._first_processes.get(identifier, (0, 0))
        try:
            ours = [Path(f"/proc/{peer.pid}/ns/{kind}").readlink() for kind in _NAMESPACES]
            theirs = [Path(f"/proc/{first}/ns/{kind}").readlink() for kind in _NAMESPACES]
            group = self._roots.find(read_cgroup_of(first))
            same = process_start_time(first) == started
        except (FileNotFoundError, ProcessLookupError, PeerGoneError) as error:
            peer.check()
            raise WorkloadError(
                "the first process of the caller's container has ended", reason="cri_unseen"
            ) from error
        except OSError as error:
            raise WorkloadError(
                f"the namespaces of process {peer.pid} cannot be read: {error.strerror}",
                reason="process_unreadable",
                advice="give the agent CAP_SYS_PTRACE",
            ) from error
        except CgroupError as error:
            raise WorkloadError(str(error), reason="cri_unseen") from error
        if not same or group is None or group.container_id != identifier:
            raise WorkloadError(
                "the pid of the container's first process belongs to another process now",
                reason="cri_unseen",
            )
        if ours != theirs:
            raise WorkloadError(
                f"process {peer.pid} is in the control group of container {identifier[:12]} but "
                "not in its mount and PID namespaces: it moved itself there",
                reason="cri_other_namespaces",
                advice="if it made namespaces of its own, serve it by another rule",
            )

    # --- all pods -------------------------------------------------------------------------------

    async def _look(self, *, not_before: float = float("-inf")) -> None:
        """Look for new containers; all callers that ask meanwhile share one look."""
        asked_at = self._clock.now().monotonic
        async with self._looking:
            if self._looked_at > asked_at:
                return
            rest = not_before - self._clock.now().monotonic
            if rest > 0:
                await self._clock.sleep(rest)
            self._unclear_before, self._unclear = self._unclear, {}
            try:
                # The order matters: a sandbox that is listed first cannot hide one of its
                # containers.
                sandboxes = await self._runtime.sandboxes()
                await self._see(sandboxes, await self._containers(sandboxes))
                self._error = None
            except WorkloadError as error:
                if self._error is None or str(self._error) != str(error):
                    _LOG.warning("containers cannot be followed", extra={"why": error})
                self._error = without_frames(error)
            self._looked_at = self._clock.now().monotonic
            changed, self._changed = self._changed, False
        if changed:
            try:
                await self._storing.settled()
            finally:  # the caller who looked may leave, and others must hear of it all the same
                self._listeners.tell()

    async def _containers(self, sandboxes: frozenset[str]) -> tuple[Listed, ...]:
        """List all containers; sandbox by sandbox if pods make the list too long for one answer.

        Raises:
            WorkloadError: the runtime did not answer.
        """
        try:
            return await self._runtime.containers()
        except WorkloadError as error:
            if error.reason == "cri_unavailable":
                raise
        found: list[Listed] = []
        for sandbox in sandboxes:
            try:
                found += await self._runtime.containers(sandbox=sandbox)
            except WorkloadError as error:
                self._refuse(sandbox, error, sandbox=sandbox)
        return tuple(found)

    async def _see(self, sandboxes: frozenset[str], listed: tuple[Listed, ...]) -> None:
        """Take in what the runtime lists.

        Raises:
            WorkloadError: the runtime did not answer; what was seen before that counts.
        """
        if self._first_list is None:
            self._first_list = sandboxes
        for sandbox in sandboxes - set(self._seen.pods) - set(self._refused):
            try:
                said = await self._described(sandbox, self._runtime.sandbox)
                now_ns = int(self._clock.now().wall.timestamp() * 1e9)
                joined = sandbox not in self._first_list
                await self._seen.add_sandbox(sandbox, said, now_ns=now_ns, joined=joined)
                self._changed = True
                self._storing.note()
            except Exception as error:  # noqa: BLE001  the boundary between one sandbox and others
                self._refuse(sandbox, _refusal(sandbox, error), sandbox=sandbox)
        for each in listed:
            pod = self._seen.pods.get(each.sandbox_id)
            known = pod is not None and each.id in pod.containers
            if pod is None or each.id in self._refused:
                continue
            if known and (each.id in self._first_processes or not each.alive):
                continue
            try:
                await self._see_container(pod, each)
            except Exception as error:  # noqa: BLE001  the boundary between a container and others
                self._refuse(each.id, _refusal(each.id, error), sandbox=each.sandbox_id)
        self._seen.keep_only(sandboxes)
        self._tell_unclear()
        self._lists.keep_only({pod.uid for pod in self._seen.pods.values()})
        containers = {each.id for each in listed}
        self._seen.forget_gone(containers)
        self._storing.keep_only(containers)
        for table in (self._first_processes, self._refused, self._late):
            for gone in set(table) - containers - sandboxes:
                del table[gone]

    async def _described(
        self, identifier: str, describe: Callable[[str], Awaitable[DescribedContainer]]
    ) -> DescribedContainer:
        """Return the description of a container or sandbox; that it is late is not an outage.

        Raises:
            WorkloadError: there is none now (``cri_not_described``), or the runtime answers nobody.
        """
        late = "the runtime gave no answer about it in time"
        if self._clock.now().monotonic < self._late.get(identifier, float("-inf")):
            raise WorkloadError(f"{identifier[:12]}: {late}", reason="cri_not_described")
        try:
            return await describe(identifier)
        except WorkloadError as error:
            if error.reason != "cri_late":
                raise
        await self._runtime.sandboxes()  # does it answer others?
        self._late[identifier] = self._clock.now().monotonic + _LATE_SECONDS
        raise WorkloadError(f"{identifier[:12]}: {late}", reason="cri_not_described")

    def _tell_unclear(self) -> None:
        """Let each pod have its identity while all of it is described, and not otherwise."""
        for sandbox, pod in self._seen.pods.items():
            unclear = self._unclear.get(sandbox, "")
            self._changed |= unclear != pod.unclear
            pod.unclear = unclear

    def _refuse(self, identifier: str, error: WorkloadError, *, sandbox: str) -> None:
        """Take the identity from a pod in which something cannot be described; an outage does not.

        Raises:
            WorkloadError: the runtime did not answer.
        """
        if error.reason == "cri_unavailable":
            raise error
        pod = self._seen.pods.get(sandbox)
        if error.reason == "cri_not_described":  # perhaps it has ended: the next look asks again
            self._unclear[sandbox] = error.message
            if self._unclear_before.get(sandbox) != error.message:
                _LOG.warning("a container is not described", extra={"why": error})
            return
        if identifier not in self._refused:
            _LOG.warning("a container is not understood", extra={"why": error})
        self._refused[identifier] = error
        if pod is not None and not pod.missed:
            pod.missed = f"a container is not understood: {error.message}"
            self._changed = True
            self._storing.note()

    async def _see_container(self, pod: SeenPod, each: Listed) -> None:
        said = await self._described(each.id, self._runtime.container)
        if said.pid:
            # Whoever has this number once it has ended is another process.
            with contextlib.suppress(PeerGoneError, OSError):
                self._first_processes[each.id] = (said.pid, process_start_time(said.pid))
        if each.id in pod.containers:
            return
        digest = await self._seen.add_container(pod, each, said)
        self._storing.note(each.id)
        self._changed = True
        _LOG.info(
            "a container was seen",
            extra={"pid": said.pid, "caller": each.name, "selectors": digest},
        )


def _refusal(identifier: str, error: Exception) -> WorkloadError:
    """Return why a container counts as not described; report what nobody expected.

    Its pod has no identity until it is described, as with every container that nobody knows.
    """
    if isinstance(error, WorkloadError):
        return error
    report("recognition", error, caller=identifier)
    return WorkloadError(
        f"{identifier[:12]}: the look at it failed: {type(error).__name__}",
        reason="cri_not_described",
    )
