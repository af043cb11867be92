"""Log lines that an owner of connections causes: each owner has an allowance of them.

Owns which owner a handler runs for. Invariant: whatever a handler of a client logs counts against
the client's owner; lines beyond its allowance are counted, and the next line says how many.
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
    """Lets lines pass that no owner causes, or that its allowance has room for."""

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
