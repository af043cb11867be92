"""Says whether a repeated event is worth a line of log: at most one in an interval.

Owns that decision. Invariant: the table of events is bounded, so callers cannot fill it; events
that do not fit count under one key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Hashable

_OTHERS: Final = object()


@dataclass(slots=True)
class _Said:
    at: float
    since: int = 0


@dataclass(slots=True, kw_only=True)
class Repeats:
    """Counts repeated events, by key.

    Attributes:
        interval: seconds between two lines about one key.
        keys: how many keys are counted apart; all others are counted together.
    """

    interval: float = 10.0
    keys: int = 1024
    _said: dict[Hashable, _Said] = field(default_factory=dict)

    def due(self, key: Hashable, *, now: float) -> int | None:
        """Count one event; if a line is due, return how many came since the last line, else None.

        Args:
            key: what happened, and to whom.
            now: the time, in monotonic seconds.
        """
        said = self._said.get(key)
        if said is None:
            key = self._room_for(key, now)
            said = self._said.get(key)
        if said is None:
            self._said[key] = _Said(at=now)
            return 1
        said.since += 1
        if now - said.at < self.interval:
            return None
        times, said.at, said.since = said.since, now, 0
        return times

    def _room_for(self, key: Hashable, now: float) -> Hashable:
        if len(self._said) >= self.keys:
            over = [each for each, said in self._said.items() if now - said.at >= self.interval]
            for each in over:
                del self._said[each]
        return key if len(self._said) < self.keys else _OTHERS
