"""Decides about one question, by the policy, the container runtime and the memory.

Owns :class:`RuntimeAdmission`. Invariants: an admission is remembered before the wrapper is told; a
fact that cannot be found out is a refusal.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.admission.judge import AdmittedSandbox, admit_container, admit_exec, admit_sandbox
from sds.admission.memory_file import is_bounded
from sds.admission.question import bad_form
from sds.errors import PolicyError, WorkloadError
from sds.files import read_file
from sds.untrusted_input import words_of
from sds.workload.cri.canonical import Surroundings, canonical, executed
from sds.workload.cri.pods import IMAGE_DIGEST

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.admission.memory_file import Memory, MemoryFile
    from sds.admission.question import Question
    from sds.admission.settings import AdmissionConfig
    from sds.clock import Clock
    from sds.policy.holder import PolicyHolder
    from sds.workload.cri.runtime import Runtime
    from sds.workload.cri.settings import PodContents

_FORGET_SECONDS: Final = 600.0
_FORGET_ABOVE: Final = 256
_MOST_PID: Final = 20


class RuntimeAdmission:
    """Decides which containers and processes start."""

    def __init__(
        self,
        config: AdmissionConfig,
        *,
        policy: PolicyHolder,
        runtime: Runtime,
        memory: Memory,
        file: MemoryFile,
        clock: Clock,
    ) -> None:
        self._config = config
        self._policy = policy
        self._runtime = runtime
        self._memory = memory
        self._file = file
        self._clock = clock

    async def decide(self, question: Question) -> None:
        """Admit what the question asks for, or raise the reason why not.

        Raises:
            WorkloadError: the container or process is refused.
        """
        if question.has_input:
            raise bad_form("its standard input is open: anyone who attaches to it can write to it")
        if question.command == "exec":
            self._exec(question)
            return
        if _terminal(question.document.get("process")):
            raise bad_form("it has a terminal: anyone who attaches to it can type into it")
        kind = question.annotation("container-type")
        if kind == "sandbox":
            await self._sandbox(question)
        elif kind == "container":
            await self._container(question)
        else:
            raise bad_form(f"{kind[:80]!r} is neither a sandbox nor a container")

    def _rules(self) -> tuple[tuple[PodContents, ...], str]:
        """Return the rules, and why the policy has none of them."""
        try:
            return (*self._config.always, *self._policy.in_force().pods), ""
        except PolicyError as error:
            return self._config.always, error.message

    async def _sandbox(self, question: Question) -> None:
        identifier, runtime = question.identifier, self._config.runtime
        around = Surroundings(
            pod_uid=question.pod_uid(),
            sandbox_id=identifier,
            sandbox_pid=0,
            kubelet=runtime.kubelet_directory,
            runtime=runtime.runtime_directories,
        )
        spec = question.document
        found = canonical("", runtime.sandbox_image, spec, around, container_id=identifier)
        new = AdmittedSandbox(
            pod_uid=around.pod_uid,
            digest=found.digest,
            unmeasured=tuple(sorted(found.unmeasured)),
            pid_file=question.pid_file,
            admitted_at=self._clock.now().monotonic,
        )
        await self._forget()
        known = self._memory.sandboxes.get(identifier)
        if known is not None and known.containers:
            # The runtime will refuse it, and what is in the sandbox must not be forgotten for it.
            raise bad_form(f"there is a sandbox {identifier[:12]} with containers already")
        pods, about = self._rules()
        self._admit(identifier, new, lambda: admit_sandbox(found, pods, about=about))

    async def _container(self, question: Question) -> None:
        identifier, runtime = question.identifier, self._config.runtime
        sandbox_id, name = question.annotation("sandbox-id"), question.annotation("container-name")
        if not name:
            raise bad_form("the container has no name")
        sandbox = self._memory.sandboxes.get(sandbox_id)
        if sandbox is None:
            raise bad_form(f"the sandbox {sandbox_id[:12]} was not admitted here: start it again")
        pid = await threads.ADMISSION.run(_pid_in, sandbox.pid_file)
        image = await self._image_of(identifier)
        around = Surroundings(
            pod_uid=sandbox.pod_uid,
            sandbox_id=sandbox_id,
            sandbox_pid=pid,
            kubelet=runtime.kubelet_directory,
            runtime=runtime.runtime_directories,
        )
        found = canonical(name, image, question.document, around, container_id=identifier)
        # Another container of this sandbox may have been admitted while the runtime was asked.
        sandbox = self._memory.sandboxes.get(sandbox_id, sandbox)
        known = sandbox.containers.get(identifier)
        if known is not None and known.digest != found.digest:
            raise bad_form(f"there is another container {identifier[:12]} already")
        new = sandbox.with_container(identifier, name, found)
        pods, about = self._rules()
        what = f"the container {name} {found.digest}"
        if found.unmeasured:
            what += f" with {', '.join(sorted(found.unmeasured))}"
        self._admit(sandbox_id, new, lambda: admit_container(new, pods, what=what, about=about))

    def _exec(self, question: Question) -> None:
        for sandbox in self._memory.sandboxes.values():
            container = sandbox.containers.get(question.identifier)
            if container is not None:
                break
        else:
            raise bad_form(f"the container {question.identifier[:12]} was not admitted here")
        if _terminal(question.document):
            raise bad_form("it has a terminal: a person is at the other end")
        found = executed(container.name, question.document)
        pods, about = self._rules()
        shown = " ".join(map(str, question.document.get("args") or ()))[:200]
        what = f"{shown!r} in container {container.name}"
        admit_exec(sandbox, found, pods, what=what, about=about)

    async def _image_of(self, identifier: str) -> str:
        """Return the digest of the image's configuration, as the runtime reports it.

        Raises:
            WorkloadError: the runtime does not answer, or does not list the container.
        """
        for each in await self._runtime.containers(identifier):
            if each.id == identifier and IMAGE_DIGEST.fullmatch(each.image):
                return each.image
        raise bad_form(f"the runtime does not list container {identifier[:12]}")

    def _admit(self, identifier: str, new: AdmittedSandbox, check: Callable[[], None]) -> None:
        """Remember ``new`` if ``check`` admits it.

        If refusals are not enforced, also if it is small: no rule bounds what its author puts in.
        """
        try:
            check()
        except WorkloadError:
            if not self._config.enforce and is_bounded(new):
                self._remember(identifier, new)
            raise
        self._remember(identifier, new)

    def _remember(self, identifier: str, new: AdmittedSandbox) -> None:
        before = self._memory.sandboxes.get(identifier)
        self._memory.sandboxes[identifier] = new
        try:
            self._file.write(self._memory)
        except BaseException as error:
            if before is None:
                del self._memory.sandboxes[identifier]
            else:
                self._memory.sandboxes[identifier] = before
            if not isinstance(error, OSError):
                raise
            raise bad_form(f"what is admitted cannot be remembered: {error.strerror}") from error

    async def _forget(self) -> None:
        """Forget sandboxes that the runtime no longer lists, once many are remembered."""
        if len(self._memory.sandboxes) < _FORGET_ABOVE:
            return
        with contextlib.suppress(WorkloadError):
            there = await self._runtime.sandboxes()
            now = self._clock.now().monotonic
            for key, sandbox in list(self._memory.sandboxes.items()):
                # The runtime lists a sandbox only after it has started, and knows none from before
                # this boot, with which the clock began anew.
                if key not in there and not 0 <= now - sandbox.admitted_at <= _FORGET_SECONDS:
                    del self._memory.sandboxes[key]


def _terminal(process: object) -> bool:
    return isinstance(process, dict) and process.get("terminal") not in (None, False)


def _pid_in(path: str) -> int:
    """Return the process ID that runc wrote to this file.

    Raises:
        WorkloadError: ``admission_form``.
    """
    try:
        pid = int(read_file(Path(path), max_bytes=_MOST_PID))
    except (OSError, ValueError) as error:
        raise bad_form(f"the sandbox's process is not known: {words_of(error)}") from error
    if pid <= 0:
        raise bad_form("the sandbox's process is not known")
    return pid
