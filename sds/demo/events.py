"""What the demo tells: its events, and their form as lines of JSON.

Invariant: the JSON form is an interface that other tools rely on; a field is added at most, never
renamed or removed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The first request went through: everything below can be used.

    Attributes:
        pids: process -> process id.
        sockets: workload -> path of its SDS socket.
        admin: workload -> ``host:port`` of its Envoy's admin interface.
        entry: URL that takes plain HTTP; the answer says which peer the server saw.
        admin_socket: the agent's socket for people; not in the JSON form.
    """

    pids: Mapping[str, int]
    sockets: Mapping[str, str]
    admin: Mapping[str, str]
    entry: str
    admin_socket: str = ""

    def as_json(self) -> str:
        """Return the event as one line of JSON."""
        return _line(
            "ready",
            pids=dict(self.pids),
            sockets=dict(self.sockets),
            admin=dict(self.admin),
            entry=self.entry,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """Traffic was seen under a certificate that no request had used before.

    Attributes:
        workload: whose certificate.
        serial: its serial number, lower-case hex, as the other side's Envoy reports it.
        not_after: its expiry.
        seen_after_ms: from its arrival at the agent to the end of the first request that used
            it; None if the agent did not say when it arrived.
    """

    workload: str
    serial: str
    not_after: datetime
    seen_after_ms: float | None

    def as_json(self) -> str:
        """Return the event as one line of JSON."""
        return _line(
            "rotated",
            workload=self.workload,
            serial=self.serial,
            not_after=self.not_after.isoformat().replace("+00:00", "Z"),
            seen_after_ms=None if self.seen_after_ms is None else round(self.seen_after_ms, 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """A process ended although nobody asked it to; ``status`` as ``subprocess`` has it."""

    process: str
    pid: int
    status: int

    def as_json(self) -> str:
        """Return the event as one line of JSON."""
        return _line("exited", process=self.process, pid=self.pid, status=self.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process that had ended was started again."""

    process: str
    pid: int

    def as_json(self) -> str:
        """Return the event as one line of JSON."""
        return _line("started", process=self.process, pid=self.pid)


@dataclass(frozen=True, slots=True, kw_only=True)
class RightChanged:
    """A new epoch of the policy took the client's right away, or gave it back.

    Attributes:
        allowed: whether requests are let through now.
        epoch: of the policy.
        seen_after_ms: from the moment at which the file was written to the first answer by it.
    """

    allowed: bool
    epoch: int
    seen_after_ms: float

    def as_json(self) -> str:
        """Return the event as one line of JSON."""
        return _line(
            "right",
            allowed=self.allowed,
            epoch=self.epoch,
            seen_after_ms=round(self.seen_after_ms, 1),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A request failed; told to people, and counted in the summary."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The last line.

    Attributes:
        requests: all requests since ready.
        failed: those of them that did not come back as they should.
        rotations: workload -> rotations seen in traffic.
        handshakes: full TLS handshakes that the server Envoy counted.
    """

    requests: int
    failed: int
    rotations: Mapping[str, int]
    handshakes: int

    def as_json(self) -> str:
        """Return the event as one line of JSON."""
        return _line(
            "summary",
            requests=self.requests,
            failed=self.failed,
            rotations=dict(self.rotations),
            handshakes=self.handshakes,
        )


Event = Ready | Rotated | RightChanged | Exited | Started | Failed | Summary


def _line(event: str, **fields: object) -> str:
    return json.dumps({"event": event, **fields})
