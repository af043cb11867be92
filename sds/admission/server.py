"""Serves the socket on which the wrapper asks its questions, and composes the service.

Owns :func:`serve` and :class:`QuestionServer`. Invariants: each question has a deadline and a
bounded size, and few are read at a time; only root may ask; a fault with one question refuses that
question, is logged and counted, and ends nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from sds.admission.memory_file import MemoryFile
from sds.admission.policy_memory import PolicyMemory
from sds.admission.question import MOST_HEADER, read_question
from sds.admission.service import RuntimeAdmission
from sds.agent.directory import claimed
from sds.errors import SdsError
from sds.faults import report
from sds.operations.hangup import on_hangup
from sds.policy.holder import PolicyHolder
from sds.policy.policy_copy import follow_copy
from sds.policy.reload import PolicyFiles
from sds.printable import printable
from sds.supervision import supervised
from sds.unix_sockets import OURS_ALONE, listening
from sds.untrusted_input import words_of
from sds.workload.cri.runtime import Runtime

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.admission.question import Question
    from sds.admission.settings import AdmissionConfig
    from sds.clock import Clock
    from sds.policy.watcher import PolicyWatcher

_LOG = logging.getLogger("sds.admission")
_SECONDS: Final = 9.0  # less than the wrapper itself waits
_AT_ONCE: Final = 16
_MOST_CHARACTERS: Final = 2000
"""The most of a reason that is told: the wrapper reads 64 KiB, and an escape has 10 bytes."""
_PEER: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7))
ADMITTED: Final = "admitted"


class AdmissionObserver(Protocol):
    """Counts decisions."""

    def decided(self, command: str, decision: str) -> None:
        """Count one decision: :data:`ADMITTED`, or the reason of the refusal."""
        ...


class QuestionServer:
    """Answers the wrapper; each connection carries one question.

    Args:
        admission: decides about each question.
        enforce: if False, every answer is yes, and the log says what it would have been.
        observer: counts the decisions.
    """

    def __init__(
        self, admission: RuntimeAdmission, *, enforce: bool, observer: AdmissionObserver
    ) -> None:
        self._admission = admission
        self._enforce = enforce
        self._observer = observer
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, and close it."""
        why: str | None = None
        try:
            async with asyncio.timeout(_SECONDS), self._turns:
                peer = writer.get_extra_info("socket")
                said = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
                if _PEER.unpack(said)[1] != os.geteuid():
                    return
                why = await self._decide(reader)
                answer = f"no: {_one_line(why)}" if why and self._enforce else "yes"
                writer.write(answer.encode() + b"\n")
                await writer.drain()
        except (OSError, TimeoutError) as error:
            # Without an answer the wrapper refuses. What was decided is counted already.
            if why is None:
                self._observer.decided("", "unanswered")
            _LOG.warning("a question could not be answered", extra={"why": words_of(error)})
        finally:
            writer.close()

    async def _decide(self, reader: asyncio.StreamReader) -> str:
        """Return why the answer is no; the empty string means yes."""
        question: Question | None = None
        try:
            question = await read_question(reader)
            await self._admission.decide(question)
        except SdsError as error:
            self._say(question, error)
            return f"{error.reason}: {error.message}"
        except (OSError, TimeoutError):
            raise
        except Exception as error:  # noqa: BLE001  the boundary between one question and the rest
            report("admission", error)
            self._observer.decided("" if question is None else question.command, "internal")
            return f"internal error: {type(error).__name__}"
        self._observer.decided(question.command, ADMITTED)
        _LOG.info("admitted", extra={"command": question.command, "caller": question.identifier})
        return ""

    def _say(self, question: Question | None, error: SdsError) -> None:
        command = "" if question is None else question.command
        self._observer.decided(command, error.reason)
        _LOG.warning(
            "refused" if self._enforce else "would be refused, and runs (enforce: false)",
            extra={
                "command": command,
                "caller": "" if question is None else question.identifier,
                "reason": error.reason,
                "why": error.message,
            },
        )


def _one_line(why: str) -> str:
    """Return a reason as the wrapper shows it, though the host chose names in it."""
    return printable(" ".join(why[:_MOST_CHARACTERS].split()))


async def serve(
    config: AdmissionConfig,
    *,
    clock: Clock,
    observer: AdmissionObserver,
    watcher: PolicyWatcher | None,
    ready: Callable[[], None],
    watch: Callable[[PolicyHolder], None],
) -> None:
    """Run the service until cancelled.

    Args:
        config: the service's configuration.
        clock: gives the time.
        observer: counts decisions.
        watcher: is told about every policy that comes into force or is refused.
        ready: is called once the socket is open.
        watch: gets the policy holder, for metrics.

    Raises:
        ConfigurationError: a key, the place of the policy or the memory file cannot be used.
        SocketError: the directory or the socket cannot be used.
    """
    with claimed(config.run_dir):
        file = MemoryFile(config.run_dir)
        memory = file.read()
        start = memory.floor(config.policy.start(config.trust_domain))
        holder = PolicyHolder(start, clock=clock, watcher=watcher)
        watch(holder)
        kept = PolicyMemory(holder, memory, file, clock=clock)
        holder.listen(kept.keep)
        if memory.policy:
            holder.take(memory.policy, origin="memory")
        files = PolicyFiles(config.policy.place, holder, clock=clock)
        files.load()
        async with Runtime(config.runtime.socket) as runtime:
            admission = RuntimeAdmission(
                config, policy=holder, runtime=runtime, memory=memory, file=file, clock=clock
            )
            server = QuestionServer(admission, enforce=config.enforce, observer=observer)
            listener = listening(config.socket, OURS_ALONE)
            with on_hangup(files.ask):
                async with (
                    await asyncio.start_unix_server(
                        server.answer, sock=listener, limit=MOST_HEADER
                    ),
                    asyncio.TaskGroup() as tasks,
                ):
                    tasks.create_task(supervised("policy", holder.run, clock=clock))
                    tasks.create_task(supervised("policy-memory", kept.run, clock=clock))
                    tasks.create_task(supervised("policy-files", files.follow, clock=clock))
                    if config.policy_copy is not None:
                        follow = partial(follow_copy, Path(config.policy_copy), holder, clock=clock)
                        tasks.create_task(supervised("policy-copy", follow, clock=clock))
                    ready()
