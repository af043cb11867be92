"""Notices when a socket of ours is removed or replaced, and puts it back.

Owns what each socket's path led to when we bound it, and a second name for it in a directory that
only we can enter: a hard link, from which the first name is made again. Invariants: a path that no
longer leads to our socket is reported within :data:`PERIOD_SECONDS` and put back at once; it stays
reported for :data:`REMEMBERED_SECONDS` after that, so that the agent is not ready and an alert
fires even if the socket was gone only for a moment; what has the second name counts only if it is
our socket. Clients that connected meanwhile reached
nothing, or another process.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.agent.directory import make_directory
from sds.errors import SocketError
from sds.outside import words_of
from sds.unix_sockets import SocketFile, clear_directory, file_at, remove_at_end

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
PERIOD_SECONDS: Final = 1.0
REMEMBERED_SECONDS: Final = 60.0


@dataclass(slots=True, kw_only=True)
class _Guarded:
    """A socket of ours.

    Attributes:
        file: its device and inode.
        kept: its second name; None if it cannot have one.
        lost_at: when its path was last seen to lead elsewhere, in monotonic seconds.
    """

    file: SocketFile | None
    kept: Path | None
    lost_at: float | None = None


class SocketGuard:
    """Compares every path at intervals."""

    def __init__(self, *, clock: Clock, keep: Path | None = None) -> None:
        """Watch nothing yet.

        Args:
            clock: time.
            keep: a directory for second names, on the file system of the sockets; it is made. With
                None, nothing can be put back.

        Raises:
            SocketError: the directory cannot be made or emptied.
        """
        self._sockets: dict[Path, _Guarded] = {}
        self._clock = clock
        self._keep = keep
        if keep is not None:
            make_directory(keep, 0o700)
            try:
                for left in keep.iterdir():  # left by an agent that died
                    left.unlink()
            except OSError as error:
                raise SocketError(
                    f"{keep} cannot be emptied: {words_of(error)}",
                    advice="remove what is in it: only the agent puts something there",
                ) from error

    def add(self, *paths: Path) -> None:
        """Watch these paths, where our sockets are bound now."""
        for path in paths:
            self._sockets[path] = _Guarded(file=file_at(path), kept=self._second_name(path))

    def close(self) -> None:
        """Forget everything; the sockets' own paths stay."""
        for guarded in self._sockets.values():
            if guarded.kept is not None:
                remove_at_end(guarded.kept, guarded.file)
        self._sockets.clear()

    @property
    def lost(self) -> tuple[str, ...]:
        """Return the paths that do not lead to our sockets now, or did not a moment ago."""
        return tuple(str(path) for path, one in self._sockets.items() if one.lost_at is not None)

    def look(self) -> bool:
        """Compare every path with its first target, and say whether :attr:`lost` changed."""
        before = self.lost
        now = self._clock.now().monotonic
        for path, guarded in self._sockets.items():
            if file_at(path) != guarded.file:
                first = guarded.lost_at is None
                guarded.lost_at = now
                self._put_back(path, guarded, loud=first)
            elif guarded.lost_at is not None and now - guarded.lost_at >= REMEMBERED_SECONDS:
                guarded.lost_at = None
        return self.lost != before

    async def run(self, changed: Callable[[], None]) -> None:
        """Look until cancelled, and call ``changed`` when :attr:`lost` changed."""
        while True:
            await self._clock.sleep(PERIOD_SECONDS)
            if self.look():
                changed()

    def _second_name(self, path: Path) -> Path | None:
        if self._keep is None:
            return None
        kept = self._keep / str(len(self._sockets))
        try:
            os.link(path, kept, follow_symlinks=False)
        except OSError as error:
            _LOGGER.warning(
                "the socket %s cannot be put back if somebody removes it: %s",
                path,
                error.strerror,
                extra={"path": path, "why": error.strerror},
            )
            return None
        return kept

    def _put_back(self, path: Path, guarded: _Guarded, *, loud: bool) -> None:
        why = "it has no second name"
        if guarded.kept is not None and file_at(guarded.kept) != guarded.file:
            why = "its second name is gone too"  # what has that name may be another agent's
        elif guarded.kept is not None:
            fresh = guarded.kept.with_suffix(".new")
            try:
                fresh.unlink(missing_ok=True)
                os.link(guarded.kept, fresh, follow_symlinks=False)
                clear_directory(path)
                fresh.rename(path)  # in one step, so that there is always a socket
                why = ""
            except OSError as error:
                why = error.strerror or str(error)
                with contextlib.suppress(OSError):
                    fresh.unlink()
        if loud or why:
            _LOGGER.log(
                logging.ERROR if loud else logging.DEBUG,
                "somebody removed or replaced the socket %s: %s; clients that connected meanwhile "
                "did not reach this agent; find out who can write to its directory",
                path,
                f"it cannot be put back ({why})" if why else "it is put back",
                extra={"path": path, "why": why, "reason": "socket_lost"},
            )
