"""Notices when a socket of ours is removed, or replaced by somebody else's.

Owns what each socket's path led to when we bound it. Invariant: a path that no longer leads to our
socket is reported within :data:`PERIOD_SECONDS`: clients that connect from then on reach nobody, or
somebody else, while our own view of the world is that all is well.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
PERIOD_SECONDS: Final = 5.0


class SocketGuard:
    """Looks at every path again and again."""

    def __init__(self, *, clock: Clock) -> None:
        self._ours: dict[Path, tuple[int, int] | None] = {}
        self._clock = clock
        self._lost: tuple[str, ...] = ()

    def add(self, *paths: Path) -> None:
        """Watch these paths; our sockets are bound there now."""
        self._ours.update({path: _file(path) for path in paths})

    @property
    def lost(self) -> tuple[str, ...]:
        """Paths that no longer lead to our sockets."""
        return self._lost

    def look(self) -> bool:
        """Compare every path with what it led to at first; returns whether anything changed."""
        lost = tuple(str(path) for path, ours in self._ours.items() if _file(path) != ours)
        for path in sorted(set(lost) - set(self._lost)):
            _LOGGER.error(
                "somebody removed or replaced the socket %s: clients no longer reach this agent; "
                "find out who, and restart the agent",
                path,
                extra={"path": path},
            )
        changed = lost != self._lost
        self._lost = lost
        return changed

    async def run(self, changed: Callable[[], None]) -> None:
        """Look until cancelled; ``changed`` is called when a socket is lost, or ours again."""
        while True:
            await self._clock.sleep(PERIOD_SECONDS)
            if self.look():
                changed()


def _file(path: Path) -> tuple[int, int] | None:
    """Device and inode of the socket at this path; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
