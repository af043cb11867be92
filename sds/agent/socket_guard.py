"""Makes the sockets of the agent, notices when one is removed or replaced, and puts it back.

Owns each socket from its first moment: it is bound in a directory that only we can enter, and gets
its second name, the public one, when it is finished. So whoever can write to the public directory
can neither exchange a socket before we know which one is ours, nor make us change another file's
mode. From the first name the second is made again. Invariants: a path that does not lead to our
socket is reported within :data:`PERIOD_SECONDS` and put back at once, also if somebody else is
there at the start; it stays reported for :data:`REMEMBERED_SECONDS` after that, so that the agent
is not ready and an alert fires even if the socket was gone only for a moment; what has the first
name counts only if it is our socket. Clients that connected meanwhile reached nothing, or another
process.

The run directory's lock is ours, so what is in the place of one of its sockets belongs to no other
agent.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sds.agent.directory import make_directory
from sds.errors import SocketError
from sds.files import is_taken
from sds.unix_sockets import (
    SocketFile,
    clear_directory,
    clear_socket,
    file_at,
    remove_at_end,
)
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
PERIOD_SECONDS: Final = 1.0
REMEMBERED_SECONDS: Final = 60.0
_FDINFO_BYTES: Final = 4096


@dataclass(slots=True, kw_only=True)
class _Guarded:
    """A socket of ours.

    Attributes:
        file: its device and inode.
        kept: its name in our own directory; None if it cannot have one.
        target: where it leads, if it is a link.
        lost_at: when its path was last seen to lead elsewhere, in monotonic seconds.
    """

    file: SocketFile | None
    kept: Path | None
    target: str | None = None
    lost_at: float | None = None


class SocketGuard:
    """Compares every path at intervals."""

    def __init__(self, *, clock: Clock, keep: Path | None = None) -> None:
        """Watch nothing yet.

        Args:
            clock: time.
            keep: a directory for the sockets' own names, in the mount of the public ones; it is
                made. With None, nothing can be put back.

        Raises:
            SocketError: the directory cannot be made or emptied.
        """
        self._sockets: dict[Path, _Guarded] = {}
        self._clock = clock
        self._keep = keep
        self._mount = b""
        """The mount of that directory, once somebody asked."""
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

    @contextlib.contextmanager
    def making(self, path: Path) -> Iterator[Path]:
        """Yield where to bind a socket; after the block it is at ``path``, and is watched.

        The directory of ``path`` must exist. Another process that is there is replaced, and
        reported like one that came later.
        """
        kept = self._own_name(path)
        yield path if kept is None else kept
        guarded = _Guarded(file=file_at(path if kept is None else kept), kept=kept)
        self._sockets[path] = guarded
        if kept is not None:
            found = ""
            try:
                clear_socket(path)
            except SocketError as error:
                found = error.message
            self._place_first(path, kept, guarded, found=found)

    def link(self, path: Path, target: str) -> None:
        """Make a symbolic link, and watch it like a socket: clients that use it are led by it.

        Raises:
            SocketError: it cannot be made.
        """
        kept = self._own_name(path)
        try:
            if kept is None:
                path.unlink(missing_ok=True)
            (kept or path).symlink_to(target)
        except OSError as error:
            raise SocketError(
                f"the link {path} cannot be made: {words_of(error)}",
                advice="remove what is in its place, and make its directory writable for this user",
            ) from error
        guarded = _Guarded(file=file_at(kept or path), kept=kept, target=target)
        self._sockets[path] = guarded
        if kept is not None:
            ours = not is_taken(path) or _target(path) == target
            self._place_first(path, kept, guarded, found="" if ours else f"{path} was no such link")

    def file(self, path: Path) -> SocketFile | None:
        """Return which file our socket of this path is."""
        return self._sockets[path].file

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
            # The number of a link that was removed may be another's by then.
            if file_at(path) != guarded.file or _target(path) != guarded.target:
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

    def _own_name(self, path: Path) -> Path | None:
        """Return a name in our own directory; None if a link cannot lead from there to ``path``."""
        if self._keep is None:
            return None
        try:
            if not self._mount:
                self._mount = _mount_of(self._keep)
            same = _mount_of(path.parent) == self._mount
        except OSError as error:
            raise SocketError(
                f"the directory of {path} cannot be used: {words_of(error)}",
                advice="give it to the agent's user",
            ) from error
        if not same:
            _say_not_kept(path, "its directory is another mount")
            return None
        return self._keep / str(len(self._sockets))

    def _place_first(self, path: Path, kept: Path, guarded: _Guarded, *, found: str) -> None:
        """Give a socket its public name; ``found`` says what is there, if it is somebody's."""
        why = ""
        try:
            try:
                _place(path, guarded)
            except PermissionError as error:  # a file system without hard links (link(2))
                kept.rename(path)
                guarded.kept = None
                _say_not_kept(path, error.strerror or str(error))
        except OSError as error:
            why = error.strerror or str(error)
        if found or why:
            guarded.lost_at = self._clock.now().monotonic
            _say_lost(path, why, found=found, loud=True)

    def _put_back(self, path: Path, guarded: _Guarded, *, loud: bool) -> None:
        try:
            _place(path, guarded)
        except OSError as error:
            _say_lost(path, error.strerror or str(error), loud=loud)
        else:
            if loud:
                _say_lost(path, "", loud=True)


def _target(path: Path) -> str | None:
    """Return where a link leads; None if it is none."""
    try:
        return str(path.readlink())
    except OSError:
        return None


def _place(path: Path, guarded: _Guarded) -> None:
    """Make the public name, in one step, so that there is always a socket.

    Raises:
        OSError: it cannot be made; ``strerror`` says why.
    """
    kept = guarded.kept
    if kept is None:
        raise FileNotFoundError(errno.ENOENT, "it has no second name")
    if file_at(kept) != guarded.file:  # what has that name may be another agent's
        raise FileNotFoundError(errno.ENOENT, "its second name is gone too")
    fresh = kept.with_suffix(".new")
    try:
        fresh.unlink(missing_ok=True)
        os.link(kept, fresh, follow_symlinks=False)
        clear_directory(path)
        fresh.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise


def _say_lost(path: Path, why: str, *, loud: bool, found: str = "") -> None:
    _LOGGER.log(
        logging.ERROR if loud else logging.DEBUG,
        "somebody removed or replaced the socket %s: %s; clients that connected meanwhile did not "
        "reach this agent; find out who can write to its directory",
        path,
        f"it cannot be put back ({why})" if why else "it is put back",
        extra={"path": path, "why": why or found, "reason": "socket_lost"},
    )


def _say_not_kept(path: Path, why: str) -> None:
    _LOGGER.warning(
        "the socket %s cannot be put back if somebody removes it: %s",
        path,
        why,
        extra={"path": path, "why": why},
    )


def _mount_of(directory: Path) -> bytes:
    """Return what tells a directory's mount from others: no link leads to one (link(2), EXDEV).

    Raises:
        OSError: there is no such directory, or it may not be looked at.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        place = f"/proc/self/fdinfo/{descriptor}"
        with contextlib.suppress(OSError), open(place, "rb", 0) as file:  # noqa: PTH123  no buffer
            for line in file.read(_FDINFO_BYTES).split(b"\n"):
                if line.startswith(b"mnt_id:"):
                    return line
        # Before Linux 5.14, a process that cannot be dumped may not read this if it is not root's.
        return str(os.fstat(descriptor).st_dev).encode()
    finally:
        os.close(descriptor)
