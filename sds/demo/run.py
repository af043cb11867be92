"""Runs ``sds demo``: starts the parts, sends traffic, and ends after enough rotations.

Owns the order of the steps: start everything, wait for the first request to succeed, report
``ready``, then traffic, rotations and repairs until the end, then the summary.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import aiohttp

from sds.demo import envoys
from sds.demo.events import Failed, Ready, Summary
from sds.demo.ledger import RotationLedger
from sds.demo.supervisor import Part, Supervisor
from sds.demo.traffic import ask
from sds.demo.withdrawal import Withdrawal
from sds.errors import RequestFailedError, SdsError
from sds.http_client import client_session

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sds.bootstrap.plan import Protocol
    from sds.clock import Clock
    from sds.demo.ledger import PeerCertificate
    from sds.demo.node import DemoNode
    from sds.demo.report import Reporter

WORKERS: Final = 4
"""The most requests in flight at once."""
PAUSE_SECONDS: Final = 0.1
"""The pause between two requests of one worker: about 40 handshakes a second in all."""
READY_SECONDS: Final = 60.0
REQUEST_SECONDS: Final = 10.0
_REFRESH_SECONDS: Final = 0.25
_RETRY_SECONDS: Final = 0.05
_CYCLE_SECONDS: Final = 1.5
"""How long the client keeps its right, or lacks it, in a planned cycle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """The plan of a run.

    Attributes:
        node: the authority and the agent, with their workloads ``client`` and ``server``.
        envoy: the Envoy binary.
        folder: the folder for the bootstraps.
        rotations: how many rotations of each workload end the run; None for no end.
        protocol: the xDS variant of both Envoys.
        cycles: how often to take away the client's right and give it back, unasked.
    """

    node: DemoNode
    envoy: Path
    folder: Path
    rotations: int | None
    protocol: Protocol
    cycles: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A certificate that reached the agent: its workload, serial (lower-case hex) and time."""

    spiffe_id: str
    serial: str
    at: datetime


class Demo:
    """One run of the demo."""

    def __init__(self, plan: DemoPlan, *, reporter: Reporter, clock: Clock) -> None:
        """Prepare a run; :meth:`run` starts it."""
        self.ledger = RotationLedger(dict(plan.node.spiffe_ids))
        self._plan = plan
        self._reporter = reporter
        self._clock = clock
        self._handshakes: dict[int, int] = {}
        self._enough = asyncio.Event()
        policy = plan.node.policy
        self._right = Withdrawal(policy, clock=clock) if policy is not None else None

    def stop(self) -> None:
        """End the run now (Ctrl-C), with a summary."""
        self._enough.set()

    def toggle(self) -> None:
        """Take away the client's right, or give it back (the key ``w``)."""
        if self._right is not None and self.is_ready:
            self._right.toggle()

    @property
    def is_ready(self) -> bool:
        """Return whether the first request has succeeded."""
        return self.ledger.requests > 0

    async def run(self) -> bool:
        """Run to the end; return whether nothing failed and enough rotations were seen.

        Raises:
            SdsError: a part did not start (``demo_not_ready``, ``part_ended``).
        """
        try:
            await self._run()
        except* SdsError as group:
            raise first_error(group) from None
        return self.passed

    async def _run(self) -> None:
        ports = envoys.DemoPorts(
            entry=envoys.ReservedPort(),
            server=envoys.ReservedPort(),
            client_admin=envoys.ReservedPort(),
            server_admin=envoys.ReservedPort(),
        )
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(ports.close)
            http = await stack.enter_async_context(client_session(timeout=timeout))
            supervisor = Supervisor(
                self._parts(ports),
                logs=self._plan.node.logs,
                clock=self._clock,
                tell=self._reporter.tell,
                line=self._heard,
            )
            async with asyncio.TaskGroup() as group:
                keeping = group.create_task(supervisor.run(), name="supervisor")
                await self._first_request(http, ports, supervisor)
                supervisor.settle()
                self._reporter.tell(self._ready(ports, supervisor.pids))
                work = [
                    group.create_task(self._traffic(http, ports), name=f"traffic {number}")
                    for number in range(WORKERS)
                ]
                watch = group.create_task(self._watch(http, ports, supervisor), name="watch")
                work.append(group.create_task(self._cycles(), name="withdrawals"))
                try:
                    await self._enough.wait()
                finally:
                    for task in work:
                        task.cancel()
                    watch.cancel()
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        await self._count_handshakes(http, ports, supervisor)
                    for rotated in self.ledger.without_arrival():
                        self._reporter.tell(rotated)
                    self._reporter.refresh(self.ledger, self._clock.now())
                    keeping.cancel()

    @property
    def passed(self) -> bool:
        """Return whether nothing failed and every workload rotated often enough."""
        reached = self.ledger.reached(self._plan.rotations or 0)
        return self.ledger.failed == 0 and reached and self._cycled

    def summary(self) -> Summary:
        """Return the summary so far."""
        return Summary(
            requests=self.ledger.requests,
            failed=self.ledger.failed,
            rotations=self.ledger.rotations(),
            handshakes=sum(self._handshakes.values()),
        )

    # --- parts ----------------------------------------------------------------------------------

    def _parts(self, ports: envoys.DemoPorts) -> list[Part]:
        made = envoys.bootstraps(
            sockets=self._plan.node.sockets,
            ports=ports,
            protocol=self._plan.protocol,
            authorization=self._right is not None,
        )
        parts = list(self._plan.node.parts)
        for workload, text in made.items():
            path = self._plan.folder / f"envoy-{workload}.yaml"
            path.write_text(text)
            parts.append(
                Part(name=f"envoy_{workload}", command=envoys.command(self._plan.envoy, path))
            )
        return parts

    def _ready(self, ports: envoys.DemoPorts, pids: Mapping[str, int]) -> Ready:
        return Ready(
            pids=dict(pids),
            sockets={name: str(path) for name, path in self._plan.node.sockets.items()},
            admin={"client": ports.client_admin.address, "server": ports.server_admin.address},
            entry=f"http://{ports.entry.address}/",
            admin_socket=str(self._plan.node.admin_socket),
        )

    def _heard(self, part: str, text: str) -> None:
        """Learn from the agent's log when a certificate arrived."""
        if part == "agent" and (found := arrival(text)) is not None:
            rotated = self.ledger.arrived(found.serial, found.at)
            if rotated is not None:
                self._reporter.tell(rotated)

    # --- traffic --------------------------------------------------------------------------------

    async def _first_request(
        self, http: aiohttp.ClientSession, ports: envoys.DemoPorts, supervisor: Supervisor
    ) -> None:
        last = "nothing was tried"
        try:
            async with asyncio.timeout(READY_SECONDS):
                await supervisor.started()
                while True:
                    try:
                        seen = await ask(http, f"http://{ports.entry.address}/", self.ledger)
                    except RequestFailedError as error:
                        last = str(error)
                        await self._clock.sleep(_RETRY_SECONDS)
                    else:
                        if seen is not None:
                            self.ledger.succeeded(seen, at=self._clock.now().wall)
                            return
                        last = "HTTP 403: the policy denies it"
                        await self._clock.sleep(_RETRY_SECONDS)
        except TimeoutError:
            told = "\n".join(
                f"--- {name}\n{supervisor.last_lines(name)}" for name in supervisor.pids
            )
            raise SdsError(
                f"no request went through in {READY_SECONDS:.0f} s; the last one: {last}\n{told}",
                reason="demo_not_ready",
            ) from None

    async def _traffic(self, http: aiohttp.ClientSession, ports: envoys.DemoPorts) -> None:
        entry = f"http://{ports.entry.address}/"
        while True:
            try:
                seen = await ask(http, entry, self.ledger)
            except RequestFailedError as error:
                self.ledger.failure()
                self._reporter.tell(Failed(why=str(error)))
            else:
                self._answered(seen)
            await self._clock.sleep(PAUSE_SECONDS)

    def _answered(self, seen: dict[str, PeerCertificate] | None) -> None:
        """Note that a request was allowed, or denied by the policy."""
        wrong = self._against_policy(allowed=seen is not None)
        if wrong:
            self.ledger.failure()
            self._reporter.tell(Failed(why=wrong))
        if seen is not None:
            for rotated in self.ledger.succeeded(seen, at=self._clock.now().wall):
                self._reporter.tell(rotated)
        wanted = self._plan.rotations
        if wanted is not None and self.ledger.reached(wanted) and self._cycled:
            self._enough.set()

    def _against_policy(self, *, allowed: bool) -> str:
        """Return what is wrong with this answer, if anything; report a new epoch's first one."""
        if self._right is None:
            return "" if allowed else "HTTP 403, and there is no policy that denies it"
        try:
            changed = self._right.saw(allowed=allowed)
        except ValueError as error:
            return str(error)
        if changed is not None:
            self._reporter.tell(changed)
        return ""

    @property
    def _cycled(self) -> bool:
        """Return whether the right was withdrawn and given back as often as planned."""
        return self._right is None or self._right.changes >= 2 * self._plan.cycles

    async def _cycles(self) -> None:
        right = self._right
        if right is None:
            return
        for change in range(1, 2 * self._plan.cycles + 1):
            await self._clock.sleep(_CYCLE_SECONDS)
            right.toggle()
            while right.changes < change:
                await self._clock.sleep(_RETRY_SECONDS)

    # --- the view -------------------------------------------------------------------------------

    async def _watch(
        self, http: aiohttp.ClientSession, ports: envoys.DemoPorts, supervisor: Supervisor
    ) -> None:
        """Refresh the view; count handshakes while the server Envoy that made them lives."""
        while True:
            self._reporter.refresh(self.ledger, self._clock.now())
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await self._count_handshakes(http, ports, supervisor)
            await self._clock.sleep(_REFRESH_SECONDS)

    async def _count_handshakes(
        self, http: aiohttp.ClientSession, ports: envoys.DemoPorts, supervisor: Supervisor
    ) -> None:
        """Ask the server Envoy for its handshakes; its counters start at 0 with each process."""
        pid = supervisor.pids["envoy_server"]
        url = f"http://{ports.server_admin.address}/stats?format=json&filter=inbound.ssl.handshake"
        async with http.get(url) as response:
            stats = json.loads(await response.text())["stats"]
        self._handshakes[pid] = sum(int(entry["value"]) for entry in stats if "value" in entry)


def first_error(group: BaseExceptionGroup[SdsError]) -> SdsError:
    """Return the first error in nested groups; the others are its consequences."""
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first if isinstance(first, SdsError) else SdsError(str(first))


def arrival(text: str) -> Arrival | None:
    """Return the new certificate that this line of the agent's log (JSON) reports, if any."""
    try:
        event = json.loads(text)
        return Arrival(
            spiffe_id=event["spiffe_id"],
            serial=event["serial"],
            at=datetime.fromisoformat(event["time"]).astimezone(UTC),
        )
    except (ValueError, KeyError, TypeError):
        return None
