"""Remembers everything that was ever seen in each pod, also across a restart of the agent.

Owns :class:`SeenPods`. Invariants: what was seen in a pod is never forgotten before two lists lack
its sandbox, except that of equal attempts of a container one is enough; a pod in which something
may have been missed is *incomplete*, and no rule matches it: its sandbox is older than our memory,
or an attempt of one of its containers was never seen; the author of a pod decides neither how much
is remembered nor whether other pods are: one of which more would have to be is incomplete too; a
file that lacks something that was seen is not left for the next agent, as far as it can be removed.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sds import threads
from sds.errors import WorkloadError
from sds.files import read_file, replace_file
from sds.problems import Problems
from sds.untrusted_input import words_of
from sds.workload.cri.canonical import Surroundings, canonical

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from sds.workload.cri.lists import PodVerdict
    from sds.workload.cri.runtime import DescribedContainer, Listed
    from sds.workload.cri.settings import CriSettings, PodContents

_LOG = logging.getLogger("sds.workload.cri")
_FORMAT: Final = 1
_MAX_BYTES: Final = 64 << 20
"""The most bytes of what was seen; a container takes some hundred."""
MOST_BYTES_OF_A_POD: Final = 128 << 10
"""The most of one pod: so much of 500 pods is still read again."""
_CONTAINER_BYTES: Final = 256
"""What one container takes in the file beside its texts."""
_SHOWN: Final = 16
_SHOWN_TEXT: Final = 300
"""How many differences are told, and how many characters of each."""
IMAGE_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(slots=True, kw_only=True)
class SeenContainer:
    """A container that was seen.

    Attributes:
        name: the container's name in its pod.
        attempt: the number of the attempt, which the kubelet counts from 0.
        image: its image's configuration digest.
        digest: the digest of its canonical form.
        unmeasured: which parts of it nothing measures.
    """

    name: str
    attempt: int
    image: str
    digest: str
    unmeasured: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class SeenPod:
    """A sandbox and every container that was seen in it, by ID.

    Attributes:
        uid: the pod's UID, as the runtime was told it.
        pid: the sandbox's first process.
        digest: the digest of the sandbox's canonical form.
        unmeasured: which parts of the sandbox nothing measures.
        missed: why something may have been missed, or the empty string.
        unclear: what of it the runtime could not describe at the last look, or the empty string.
        containers: the containers, by ID.
        all_until: for each name of a container the attempt before which all were seen.
        joined: how many containers joined it.
        verdict: the lists that have it, if it was compared with them.
    """

    uid: str
    pid: int
    digest: str
    unmeasured: tuple[str, ...]
    missed: str = ""
    unclear: str = ""
    containers: dict[str, SeenContainer] = field(default_factory=dict)
    all_until: dict[str, int] = field(default_factory=dict)
    joined: int = field(default=0, compare=False)
    verdict: PodVerdict | None = field(default=None, compare=False, repr=False)

    def holds(self, contents: PodContents) -> bool:
        """Say whether the pod is what ``contents`` lists, and nothing was missed or is unclear."""
        return not (
            self.missed
            or self.unclear
            or self.digest != contents.sandbox
            or any(one.digest not in contents.containers for one in self.containers.values())
            or self.differs(contents)  # the costly part, if it is needed at all
        )

    def differs(self, contents: PodContents) -> tuple[str, ...]:
        """Return what of the pod is not listed, in words."""
        found = [] if self.digest == contents.sandbox else [f"the sandbox {self.digest}"]
        found += [
            f"container {each.name} (attempt {each.attempt}) {each.digest}"
            for each in self.containers.values()
            if each.digest not in contents.containers
        ]
        everything = {*self.unmeasured}.union(*(one.unmeasured for one in self.containers.values()))
        found += [f"unmeasured: {each}" for each in sorted(everything - set(contents.unmeasured))]
        return tuple(found)

    def find_gaps(self) -> None:
        """Note an attempt that was never seen because it ran before we looked."""
        attempts: dict[str, set[int]] = {}
        for each in self.containers.values():
            attempts.setdefault(each.name, set()).add(each.attempt)
        for name, seen in attempts.items():
            # The runtime names the attempts, and the highest one says nothing about how many ran.
            begin = self.all_until.get(name, 0)
            first = next(number for number in itertools.count(begin) if number not in seen)
            self.all_until[name] = first
            if first < max(seen):
                self.missed = self.missed or f"attempt {first} of {name} was never seen"

    def bound(self) -> None:
        """Note that there is more than is remembered; without an identity no details count."""
        texts = [self.unmeasured, *(each.unmeasured for each in self.containers.values())]
        size = sum(len(one) for each in texts for one in each)
        size += sum(len(each.name) + _CONTAINER_BYTES for each in self.containers.values())
        size += sum(len(name) + _CONTAINER_BYTES for name in self.all_until)
        if size > MOST_BYTES_OF_A_POD:
            self.missed = self.missed or "there is more of it than this agent remembers"
        if self.missed:
            self.unmeasured = ()
            for each in self.containers.values():
                each.unmeasured = ()

    def forget_gone(self, listed: AbstractSet[str]) -> None:
        """Forget containers that the runtime has no more, as far as they tell nothing new.

        Equal containers have equal digests, and of each one is enough: a container that crashes
        again and again is remembered once. Of a pod that has no identity nothing is.
        """
        told = {(each.name, each.digest) for key, each in self.containers.items() if key in listed}
        for key in [key for key in reversed(self.containers) if key not in listed]:
            one = self.containers[key]
            if self.missed or (one.name, one.digest) in told:
                del self.containers[key]
            told.add((one.name, one.digest))
        if self.missed:
            self.all_until.clear()


class SeenPods:
    """The pods by sandbox ID, also kept in a file if there is a directory for it."""

    def __init__(self, settings: CriSettings, file: Path | None, *, started_ns: int) -> None:
        """Read what the agent before this one saw.

        Args:
            settings: the directories of kubelet and runtime.
            file: what was seen, in a directory that only we can write; it contains nothing secret.
            started_ns: when we began to look, in nanoseconds since 1970.
        """
        self.pods: dict[str, SeenPod] = {}
        self._settings = settings
        self._file = file
        self._started_ns = started_ns
        self._problems = Problems()
        self._absent: AbstractSet[str] = frozenset()
        """The sandboxes that the last list lacked."""
        self._read()

    def around(self, sandbox_id: str, pod: SeenPod) -> Surroundings:
        """Return what containers of this pod are compared with."""
        return Surroundings(
            pod_uid=pod.uid,
            sandbox_id=sandbox_id,
            sandbox_pid=pod.pid,
            kubelet=self._settings.kubelet_directory,
            runtime=self._settings.runtime_directories,
        )

    async def add_sandbox(
        self, sandbox_id: str, said: DescribedContainer, *, now_ns: int, joined: bool = False
    ) -> SeenPod:
        """Note a sandbox that is seen for the first time.

        Args:
            sandbox_id: the sandbox.
            said: what the runtime says about it.
            now_ns: the time in nanoseconds since 1970, by the clock by which it was created.
            joined: whether an earlier list of the runtime lacks it, so that it is young.

        Raises:
            WorkloadError: its description has an unknown form.
        """
        pod = SeenPod(uid=said.pod_uid, pid=0, digest="", unmeasured=())
        around = self.around(sandbox_id, pod)
        pod.digest, pod.unmeasured = await _measured("", said.image, said.spec, around, sandbox_id)
        pod.pid = said.pid
        if not joined and said.created_at < self._started_ns:
            pod.missed = "the pod is older than this agent's memory of it: start it again"
        elif not joined and said.created_at > now_ns:
            # Nobody knows how old it is, and whoever sets the clock could make an old one young.
            pod.missed = "the clock was set back since the pod began: start it again"
        pod.bound()
        self.pods[sandbox_id] = pod
        return pod

    async def add_container(self, pod: SeenPod, listed: Listed, said: DescribedContainer) -> str:
        """Note a container that is seen for the first time, and return its digest.

        Raises:
            WorkloadError: its description has an unknown form.
        """
        if not IMAGE_DIGEST.fullmatch(listed.image):
            raise WorkloadError(
                f"the runtime names the image {listed.image[:200]!r}, not a configuration's digest",
                reason="cri_unknown_shape",
            )
        around = self.around(listed.sandbox_id, pod)
        digest, unmeasured = await _measured(
            listed.name, listed.image, said.spec, around, listed.id
        )
        pod.containers[listed.id] = SeenContainer(
            name=listed.name,
            attempt=listed.attempt,
            image=listed.image,
            digest=digest,
            unmeasured=unmeasured,
        )
        pod.joined += 1
        pod.find_gaps()
        pod.bound()
        return digest

    def forget_gone(self, listed: AbstractSet[str]) -> None:
        """Forget what the runtime lists no more, and what tells nothing new."""
        for pod in self.pods.values():
            pod.forget_gone(listed)

    def keep_only(self, sandboxes: AbstractSet[str]) -> None:
        """Forget pods whose sandbox two lists lack, one after the other.

        One list may lack what is there, and a pod that was forgotten may never be whole again.
        """
        absent = self.pods.keys() - sandboxes
        for gone in absent & self._absent:
            del self.pods[gone]
        self._absent = absent & self.pods.keys()

    @property
    def is_kept(self) -> bool:
        """Say whether there is a file."""
        return self._file is not None

    async def write(self) -> bool:
        """Write what was seen for the next agent, and say whether it has all of it.

        If that fails, pods lose their identity then: what an earlier write left is removed, or the
        next agent would take it for everything.
        """
        file = self._file
        if file is None:
            return True
        document = {"format": _FORMAT, "pods": {key: _plain(pod) for key, pod in self.pods.items()}}

        def write() -> None:
            try:
                replace_file(file, json.dumps(document).encode(), mode=0o600)
            except OSError:
                file.unlink(missing_ok=True)
                raise

        try:
            await threads.SEEN_PODS.run(write)
        except (OSError, RuntimeError) as error:  # a full disk; or the system gives no thread now
            why = words_of(error)
            if self._problems.is_news(why):
                _LOG.warning("what was seen in pods cannot be stored", extra={"why": why})
            return False
        self._problems.over()
        return True

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            document = json.loads(read_file(self._file, max_bytes=_MAX_BYTES))
            if document["format"] == _FORMAT:
                self.pods = {key: _pod(value) for key, value in document["pods"].items()}
        except FileNotFoundError:
            return
        except (
            OSError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            OverflowError,
            RecursionError,
        ) as error:
            _LOG.warning(
                "what was seen in pods cannot be read", extra={"why": words_of(error)[:200]}
            )


async def _measured(
    name: str, image: str, spec: Any, around: Surroundings, identifier: str
) -> tuple[str, tuple[str, ...]]:
    """Return the digest of the canonical form, and what nothing measures."""

    def measure() -> tuple[str, tuple[str, ...]]:
        found = canonical(name, image, spec, around, container_id=identifier)
        return found.digest, tuple(sorted(found.unmeasured))

    return await threads.CONTAINERS.run(measure)


def _plain(pod: SeenPod) -> dict[str, Any]:
    containers = {
        key: [one.name, one.attempt, one.image, one.digest, list(one.unmeasured)]
        for key, one in pod.containers.items()
    }
    return {
        "uid": pod.uid,
        "pid": pod.pid,
        "digest": pod.digest,
        "unmeasured": list(pod.unmeasured),
        "missed": pod.missed,
        "containers": containers,
        "all_until": pod.all_until,
    }


def _pod(value: dict[str, Any]) -> SeenPod:
    containers = {
        str(key): SeenContainer(
            name=str(name),
            attempt=int(attempt),
            image=str(image),
            digest=str(digest),
            unmeasured=tuple(map(str, unmeasured)),
        )
        for key, (name, attempt, image, digest, unmeasured) in value["containers"].items()
    }
    return SeenPod(
        uid=str(value["uid"]),
        pid=int(value["pid"]),
        digest=str(value["digest"]),
        unmeasured=tuple(map(str, value["unmeasured"])),
        missed=str(value["missed"]),
        containers=containers,
        all_until={str(name): int(first) for name, first in value.get("all_until", {}).items()},
    )


def unlisted(pod: SeenPod, contents: Iterable[PodContents]) -> WorkloadError:
    """Explain to people why a pod is none of these: compare it with the closest list."""
    differences = [pod.differs(one) for one in contents]
    nearest = min(differences, key=len, default=("no pod is listed",))
    shown = [each[:_SHOWN_TEXT] for each in nearest[:_SHOWN]]
    if more := len(nearest) - len(shown):
        shown.append(f"and {more} more")
    return WorkloadError(
        "; ".join(filter(None, (pod.missed, pod.unclear, *shown))), reason="cri_not_listed"
    )
