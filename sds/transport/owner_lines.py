"""Limits the log lines that each owner of connections causes.

Owns the record of which owner a handler runs for. Invariant: whatever the handler of a client logs
counts against the client's owner; lines beyond the owner's allowance are left out, and the next
line says how many.
"""

from __future__ import annotations

import logging
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sds.transport.budget import Owner

RUNS_FOR: Final[ContextVar[Owner | None]] = ContextVar("RUNS_FOR", default=None)
"""The owner of the call whose handler runs."""


class OwnerLines(logging.Filter):
    """Lets a line pass if no owner causes it, or if the owner's allowance has room for it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether the line is written."""
        owner = RUNS_FOR.get()
        if owner is None:
            return True
        if not owner.may_log(time.monotonic()):
            return False
        if owner.suppressed:
            record.suppressed, owner.suppressed = owner.suppressed, 0
        return True
