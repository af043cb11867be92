"""Runs ``sds dev``: an authority and an agent without Envoys, for people who bring their own.

Owns the waiting until both workloads have certificates, and the text that says what to try next.
Invariant: a command in that text works as printed, in the terminal that ran ``sds dev``.
"""

from __future__ import annotations

import asyncio
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds.demo.report import grpcurl_line
from sds.demo.run import arrival, first_error
from sds.demo.supervisor import Supervisor
from sds.errors import SdsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.clock import Clock
    from sds.demo.events import Exited, Started
    from sds.demo.node import DemoNode

READY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The commands by which a person starts ``sds`` and Envoy: text for a shell."""

    sds: str
    envoy: str


def own_program(argv0: str, *, executable: str, cwd: Path) -> str:
    """Return the shell command that starts the running ``sds`` again from ``cwd``.

    Args:
        argv0: the name that started the process (``sys.argv[0]``).
        executable: the Python interpreter (``sys.executable``).
        cwd: the person's working directory.
    """
    if Path(argv0).name == "__main__.py":
        return f"{typed(Path(executable), cwd=cwd)} -m sds"
    return typed(Path(argv0), cwd=cwd)


def typed(program: Path, *, cwd: Path) -> str:
    """Return a program as a person types it in ``cwd``: its name if on the PATH, else its path."""
    program = cwd / program
    on_path = shutil.which(program.name)
    if on_path is not None and Path(on_path).samefile(program):
        return shlex.quote(program.name)
    if program.is_relative_to(cwd):
        short = str(program.relative_to(cwd))
        return shlex.quote(short if "/" in short else f"./{short}")
    return shlex.quote(str(program))


class Dev:
    """One run of ``sds dev``; ``tell`` gets the text for people."""

    def __init__(
        self,
        node: DemoNode,
        *,
        programs: Programs,
        tell: Callable[[str], None],
        event: Callable[[Exited | Started], None],
        clock: Clock,
    ) -> None:
        """Prepare a run; :meth:`run` starts it."""
        self._node = node
        self._programs = programs
        self._tell = tell
        self._event = event
        self._clock = clock
        self._stop = asyncio.Event()
        self.is_ready = False
        self._waiting = set(node.spiffe_ids.values())
        self._served = asyncio.Event()

    def stop(self) -> None:
        """End the run (Ctrl-C)."""
        self._stop.set()

    async def run(self) -> None:
        """Run until :meth:`stop`.

        Raises:
            SdsError: authority or agent did not start.
        """
        try:
            await self._run()
        except* SdsError as group:
            raise first_error(group) from None

    async def _run(self) -> None:
        supervisor = Supervisor(
            self._node.parts,
            logs=self._node.logs,
            clock=self._clock,
            tell=self._event,
            line=self._heard,
        )
        async with asyncio.TaskGroup() as group:
            keeping = group.create_task(supervisor.run(), name="supervisor")
            await self._serving(supervisor)
            supervisor.settle()
            self.is_ready = True
            self._tell(what_next(self._node, self._programs))
            try:
                await self._stop.wait()
            finally:
                keeping.cancel()

    async def _serving(self, supervisor: Supervisor) -> None:
        """Wait until the agent has a certificate for each workload."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._served.wait()
        except TimeoutError:
            raise SdsError(
                f"the agent has no certificates after {READY_SECONDS:.0f} s; it said:\n"
                f"{supervisor.last_lines('agent')}",
                reason="demo_not_ready",
            ) from None

    def _heard(self, part: str, text: str) -> None:
        if part == "agent" and (found := arrival(text)) is not None:
            self._waiting.discard(found.spiffe_id)
            if not self._waiting:
                self._served.set()


def what_next(node: DemoNode, programs: Programs) -> str:
    """Return the text with the commands to try next."""
    sds, envoy = programs.sds, programs.envoy
    server, client = (shlex.quote(str(node.sockets[name])) for name in ("server", "client"))
    admin = shlex.quote(str(node.admin_socket))
    sockets = "\n".join(
        f"  {name:<7} {node.spiffe_ids[name]}  {path}" for name, path in node.sockets.items()
    )
    return f"""\
An authority and an agent are up, for two workloads, with keys minted in memory.
SIMULATED attestation: this chip exists only here. Nothing of this is for production.
{sockets}

What an Envoy would get; who has what at which version:
  {sds} get --socket {server}
  {sds} status --socket {admin}
The same with plain grpcurl:
  grpcurl -plaintext -unix {admin} list
  {grpcurl_line(str(node.admin_socket))}
Two Envoys of your own that talk mTLS:
  {sds} bootstrap --role server --no-authorization --socket {server} \\
      --longest-connection {node.lifetime_seconds // 2}s --admin 127.0.0.1:9901 > server.yaml
  {sds} bootstrap --role client --socket {client} --admin 127.0.0.1:9902 \\
    --peer 127.0.0.1:8443 > client.yaml
  {envoy} --disable-hot-restart --log-level error -c server.yaml &
  {envoy} --disable-hot-restart --log-level error -c client.yaml &
  curl --retry 20 --retry-all-errors http://127.0.0.1:8081/

Logs are in {node.logs}. Ctrl-C ends it."""
