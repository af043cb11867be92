"""Defines the events of the demo, and their form as lines of JSON.

Invariant: other tools rely on the JSON form, so fields may be added but never renamed or removed.
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
    """The first request succeeded: from now on everything below can be used.

    Attributes:
        pids: the process ID of each process, by name.
        sockets: the path of each workload's SDS socket.
        admin: ``host:port`` of the admin interface of each workload's Envoy.
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
    """A request used a certificate that no request had used before.

    Attributes:
        workload: the workload of the certificate.
        serial: its serial number, lower-case hex, as the other side's Envoy reports it.
        not_after: when it expires.
        seen_after_ms: milliseconds from its arrival at the agent to the end of the first request
            that used it; None if the agent did not log its arrival.
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
    """A process ended unasked; ``status`` is as in ``subprocess``."""

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
    """A new epoch of the policy took away the client's right, or gave it back.

    Attributes:
        allowed: whether requests are allowed now.
        epoch: the epoch of the policy.
        seen_after_ms: milliseconds from the writing of the file to the first answer by it.
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
    """The summary of a run, its last event.

    Attributes:
        requests: how many requests were sent since ready.
        failed: how many of them failed.
        rotations: how many rotations of each workload the traffic showed.
        handshakes: how many full TLS handshakes the server Envoy counted.
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
