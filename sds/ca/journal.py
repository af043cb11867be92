"""The record of every certificate that was issued or refused.

Invariants: records are only appended; their numbers rise by one, so that a gap would show; every
issued certificate and every refused item has a log line. Requests that are refused as a whole may
come from anybody, so their log lines are bounded (the next line says how many were left out, and
metrics count all). Memory is bounded too: the oldest records are dropped first.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

_LOGGER = logging.getLogger(__name__)
DEFAULT_RECORDS: Final = 10_000
_LINES_AT_ONCE: Final = 50
_LINES_A_SECOND: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One certificate, issued or refused.

    Attributes:
        number: the number, counted from 1.
        at: when it was decided, aware, UTC.
        identity: the requested SPIFFE ID; empty if a whole request was refused.
        serial: the certificate's serial number, lower-case hex; empty if it was refused.
        not_after: the end of the certificate's validity.
        evidence: the SHA-256 of the evidence's report, lower-case hex; empty if there was none.
        measurement: the measurement that the evidence proved; empty if it was not accepted.
        policy_epoch: the epoch of the policy that decided.
        reason: the label of the refusal, or ``issued``.
        peer: where the request came from, as gRPC names it.
    """

    number: int
    at: datetime
    identity: str
    serial: str
    not_after: datetime | None
    evidence: str
    measurement: str
    policy_epoch: int
    reason: str
    peer: str


ISSUED: Final = "issued"


class Journal:
    """Keeps the latest records."""

    def __init__(
        self,
        *,
        keep: int = DEFAULT_RECORDS,
        decided: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        """Keep the last ``keep`` records; ``decided`` is told each record's reason."""
        self._decided = decided
        self._records: deque[Record] = deque(maxlen=keep)
        self._next = 1
        self._lines = float(_LINES_AT_ONCE)
        self._lines_at = float("-inf")
        self._left_out = 0

    def __iter__(self) -> Iterator[Record]:
        """Yield the records that are kept, oldest first."""
        return iter(tuple(self._records))

    def __len__(self) -> int:
        """Return how many records were ever appended."""
        return self._next - 1

    def append(
        self,
        *,
        at: datetime,
        identity: str,
        reason: str,
        policy_epoch: int,
        evidence: str,
        measurement: str,
        peer: str,
        serial: str = "",
        not_after: datetime | None = None,
        message: str = "",
    ) -> None:
        """Record one certificate and log it; ``message`` is the text of a refusal."""
        record = Record(
            number=self._next,
            at=at,
            identity=identity,
            serial=serial,
            not_after=not_after,
            evidence=evidence,
            measurement=measurement,
            policy_epoch=policy_epoch,
            reason=reason,
            peer=peer,
        )
        self._next += 1
        self._records.append(record)
        self._decided(reason)
        if not identity and not self._may_log(at.timestamp()):
            return
        issued = reason == ISSUED
        if _LOGGER.isEnabledFor(logging.INFO if issued else logging.WARNING):
            fields = {
                "number": record.number,
                "spiffe_id": identity,
                "serial": serial,
                "not_after": not_after.isoformat() if not_after else "",
                "evidence": evidence,
                "measurement": measurement,
                "policy_epoch": policy_epoch,
                "reason": reason,
                "peer": peer,
            }
            if issued:
                _LOGGER.info("certificate issued", extra=fields)
            else:
                if self._left_out and not identity:
                    fields["left_out"] = self._left_out
                    self._left_out = 0
                _LOGGER.warning("certificate refused: %s", message or reason, extra=fields)

    def _may_log(self, now: float) -> bool:
        """Say whether one more line about a whole request is within the bound (a token bucket)."""
        passed = max(0.0, now - self._lines_at)
        self._lines = min(_LINES_AT_ONCE, self._lines + passed * _LINES_A_SECOND)
        self._lines_at = now
        if self._lines < 1:
            self._left_out += 1
            return False
        self._lines -= 1
        return True
