"""Records what the traffic has proved: requests, failures, rotations, push times.

Pure: it gets observations and answers questions; it reads no clock and opens no file. Invariants: a
rotation counts only when a request was answered under a serial that no earlier request had; it is
told once its arrival at the agent is known, because the agent's log may be read after the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sds.demo.events import Rotated

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """The certificate that one side of a connection saw of the other.

    Attributes:
        spiffe_id: the URI SAN.
        serial: the serial number, lower-case hex without leading zeros.
        not_after: when it expires.
    """

    spiffe_id: str
    serial: str
    not_after: datetime


@dataclass(slots=True, kw_only=True)
class WorkloadRotations:
    """The certificates of one workload as the other side sees them."""

    name: str
    spiffe_id: str
    certificate: PeerCertificate | None = None
    rotations: int = 0
    slowest_ms: float | None = None
    serials: set[str] = field(default_factory=set)


class RotationLedger:
    """Counts requests, failures and rotations.

    Args:
        workloads: the SPIFFE ID that each workload's certificate must have, by name.
    """

    def __init__(self, workloads: dict[str, str]) -> None:
        self.workloads = {
            name: WorkloadRotations(name=name, spiffe_id=spiffe_id)
            for name, spiffe_id in workloads.items()
        }
        self.requests = 0
        self.failed = 0
        self._arrivals: dict[str, datetime] = {}
        self._early: dict[str, tuple[Rotated, datetime]] = {}
        """By serial, the rotations whose arrival is not known yet, and when they were seen."""

    def arrived(self, serial: str, at: datetime) -> Rotated | None:
        """Note when a certificate with this serial arrived at the agent.

        Returns:
            The rotation to it, if the traffic has shown it already.
        """
        self._arrivals[serial] = at
        early = self._early.pop(serial, None)
        return None if early is None else self._timed(*early)

    def without_arrival(self) -> list[Rotated]:
        """Return the rotations of which the agent's log said nothing; ask at the end of a run."""
        left = [rotated for rotated, _ in self._early.values()]
        self._early.clear()
        return left

    def succeeded(self, seen: dict[str, PeerCertificate], *, at: datetime) -> list[Rotated]:
        """Note that a request succeeded; ``seen`` maps each workload to its certificate.

        Returns:
            The rotations that it showed, if their arrival is known.
        """
        self.requests += 1
        return [
            rotated
            for name, certificate in seen.items()
            if (rotated := self._see(self.workloads[name], certificate, at)) is not None
        ]

    def failure(self) -> None:
        """Note that a request failed."""
        self.requests += 1
        self.failed += 1

    def rotations(self) -> dict[str, int]:
        """Return how many rotations of each workload the traffic has shown."""
        return {name: state.rotations for name, state in self.workloads.items()}

    def reached(self, rotations: int) -> bool:
        """Return whether the traffic showed at least this many rotations of every workload."""
        return all(count >= rotations for count in self.rotations().values())

    def wrong_identities(self, seen: dict[str, PeerCertificate]) -> Iterable[str]:
        """Return one text for each workload whose certificate names another one."""
        for name, certificate in seen.items():
            wanted = self.workloads[name].spiffe_id
            if certificate.spiffe_id != wanted:
                yield f"the {name} showed {certificate.spiffe_id!r}, not {wanted!r}"

    def _see(
        self, state: WorkloadRotations, certificate: PeerCertificate, at: datetime
    ) -> Rotated | None:
        if certificate.serial in state.serials:
            return None
        first = state.certificate is None
        state.serials.add(certificate.serial)
        state.certificate = certificate
        if first:
            return None
        state.rotations += 1
        rotated = Rotated(
            workload=state.name,
            serial=certificate.serial,
            not_after=certificate.not_after,
            seen_after_ms=None,
        )
        if certificate.serial in self._arrivals:
            return self._timed(rotated, at)
        self._early[certificate.serial] = (rotated, at)
        return None

    def _timed(self, rotated: Rotated, at: datetime) -> Rotated:
        """Return the rotation with the time from its arrival until it was seen."""
        after = max(0.0, (at - self._arrivals[rotated.serial]).total_seconds() * 1000)
        state = self.workloads[rotated.workload]
        state.slowest_ms = max(after, state.slowest_ms or 0.0)
        return replace(rotated, seen_after_ms=after)
