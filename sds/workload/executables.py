"""Identifies what processes execute: a separate process opens and hashes it within a budget.

Owns :class:`Executables`: three lookers (:mod:`sds.workload.looker`), one for short looks, one for
hashing, and one for processes with so many mounts that a look takes long; and how many bytes each
owner may still have hashed. Invariants: neither the event loop nor
a thread of the agent opens a file that a caller chose; a look has a deadline, after which its
looker is killed and replaced; if a look hangs, its owner gets no other look until the stuck looker
is gone; an owner has one look at a time, and a bounded number of bytes hashed in a minute, even if
it reconnects; however many owners wait with large files, a small one waits for at most two of them;
however many wait with many mounts, no other process waits for them;
a file is hashed once, as long as its times say that it has not changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sds.errors import WorkloadError
from sds.untrusted_input import words_of
from sds.workload.fair_row import FairRow
from sds.workload.looker import MOST_MOUNTS_BYTES, NEAR_MOUNTS_BYTES

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from sds.clock import Clock
    from sds.workload.peer import Peer

_PROGRAM: Final = Path(__file__).with_name("looker.py")
_CACHE_ENTRIES: Final = 512
_OWNERS: Final = 1024
_OTHERS: Final = ""
# A file changed this recently may change again without a visible change of its times. The time of
# its change counts: whoever may write to it sets that of its content as they like.
_SETTLED_SECONDS: Final = 2.0
_ANSWER_BYTES: Final = 64 << 10
_MOST_STUCK: Final = 8
_LAST_WAIT_SECONDS: Final = 1.0
_FIRST_PAUSE_SECONDS: Final = 0.005
_LONGEST_PAUSE_SECONDS: Final = 1.0
_MIB: Final = 1 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Executable:
    """A running executable.

    Attributes:
        path: from which it was started, as the process's own mount namespace names it; another
            file may have that path now, and a process that can mount can choose it.
        sha256: the SHA-256 of its content, lower-case hexadecimal; None if nobody asked, or if it
            is not the file that the process executed at the first look.
        fingerprint: device, inode, size and times of the file.
    """

    path: str
    sha256: str | None
    fingerprint: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutableLimits:
    """The bounds of the work that callers cause.

    Attributes:
        largest: the size of the largest file that is hashed, in bytes.
        burst: how many bytes one owner may have hashed at once.
        rate: by how many bytes its budget grows each second, up to ``burst``.
        look_seconds: the deadline of a look without hashing.
        slowest: how many bytes a disk must deliver each second; this sets the deadline of hashing.
    """

    largest: int = 512 * _MIB
    burst: int = 1024 * _MIB
    rate: int = 16 * _MIB
    look_seconds: float = 2.0
    slowest: int = 32 * _MIB


@dataclass(slots=True)
class _Owner:
    """What one owner may still do.

    Attributes:
        left: how many bytes may be hashed, as of :attr:`at`.
        turn: a lock, taken while one of its processes is looked at.
        stuck: whether a killed looker of this owner still hangs in a file system.
    """

    left: float
    at: float
    turn: asyncio.Lock
    stuck: bool = False


class Executables:
    """Identifies executables of processes; :meth:`aclose` ends its lookers."""

    def __init__(self, clock: Clock, limits: ExecutableLimits | None = None) -> None:
        """Start no looker before somebody asks; ``clock`` tells how old a change is."""
        self.limits = limits or ExecutableLimits()
        self._clock = clock
        self._looking = _Looker(nice=0)
        self._hashing = _Looker(nice=10)
        self._searching = _Looker(nice=10)
        self._digests: OrderedDict[tuple[bool | None, tuple[int, ...]], str] = OrderedDict()
        self._owners: dict[str, _Owner] = {}
        self._stuck = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def aclose(self) -> None:
        """End the lookers."""
        lookers = (self._looking, self._hashing, self._searching)
        ended = [process for each in lookers if (process := each.kill())]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WAIT_SECONDS):
                for process in ended:
                    await _reaped(process)

    async def read(self, peer: Peer, *, digest: bool) -> Executable:
        """Return what the caller runs; call :meth:`Peer.check` afterwards.

        Raises:
            PeerGoneError: the process has ended.
            WorkloadError: ``executable_refused``: the agent reads no such file, so it is not one
                that was read before: it is too large, or is on a file system whose content its own
                user can forge. ``executable_unreadable``: it may not be read (another user's
                process, without CAP_SYS_PTRACE). ``executable_late``: a look took too long, or its
                owner has caused too much work.
        """
        owner = self._owner(peer.owner)
        await owner.turn.acquire()
        # If the caller leaves, the look goes on, so that its answer is not taken for the next
        # one's.
        look = self._spawn(self._read(owner, peer, digest=digest))
        look.add_done_callback(lambda _: owner.turn.release())
        return await asyncio.shield(look)

    async def _read(self, owner: _Owner, peer: Peer, *, digest: bool) -> Executable:
        if owner.stuck or self._stuck >= _MOST_STUCK:
            raise WorkloadError(
                "an earlier look at this owner's executables still hangs in a file system",
                reason="executable_late",
            )
        hashing = self._hashing
        seconds = self.limits.look_seconds
        found = await self._ask(self._looking, owner, peer, None, seconds)
        if found is None:  # callers with many mounts wait for each other, also to have it hashed
            hashing = self._searching
            found = await self._ask(hashing, owner, peer, None, seconds)
        assert found is not None
        if peer.executed not in (None, found.fingerprint[:2]):
            digest = False  # it counts no longer, and must not depend on what is left to hash
        sha256 = await self._digest(hashing, owner, peer, found.fingerprint) if digest else None
        return Executable(path=found.path, sha256=sha256, fingerprint=found.fingerprint)

    async def _digest(
        self, hashing: _Looker, owner: _Owner, peer: Peer, fingerprint: tuple[int, ...]
    ) -> str:
        _device, _inode, size, _modified, changed = fingerprint
        before = self._settled(changed)
        if (known := self._digests.get((before, fingerprint))) is not None:
            self._digests.move_to_end((before, fingerprint))
            return known
        self._spend(owner, size, peer)
        seconds = self.limits.look_seconds + size / self.limits.slowest
        found = await self._ask(hashing, owner, peer, fingerprint, seconds)
        if found is None:  # it is another file, on another mount
            raise WorkloadError(
                f"process {peer.pid} executed another file during the look",
                reason="executable_unreadable",
            )
        assert found.sha256 is not None
        if before is not None and self._settled(changed) is before:
            self._digests[before, fingerprint] = found.sha256
            if len(self._digests) > _CACHE_ENTRIES:
                self._digests.popitem(last=False)
        return found.sha256

    def _settled(self, changed: int) -> bool | None:
        """Say whether the file was changed long ago, or None if it may be changing now.

        False: its change lies ahead, because the clock was set back. A change shows while that
        lasts, and what was hashed before is hashed again once the clock has come there.
        """
        ago = self._clock.now().wall.timestamp() - changed / 1e9
        return None if abs(ago) <= _SETTLED_SECONDS else ago > 0

    async def _ask(
        self,
        looker: _Looker,
        owner: _Owner,
        peer: Peer,
        fingerprint: Sequence[int] | None,
        seconds: float,
    ) -> Executable | None:
        """Return what a looker says; None if the file's mount is one for :attr:`_searching`."""
        near = looker is not self._searching
        request = {
            "pid": peer.pid,
            "most": self.limits.largest,
            "mounts": NEAR_MOUNTS_BYTES if near else MOST_MOUNTS_BYTES,
            "digest": fingerprint,
        }
        try:
            said = await looker.ask(request, seconds, size=fingerprint[2] if fingerprint else 0)
        except TimeoutError:
            self._spawn(self._hangs(owner, looker.kill()))
            raise WorkloadError(
                f"the executable of process {peer.pid} gave no answer in {seconds:.0f} s",
                reason="executable_late",
                advice="check that its file system responds",
            ) from None
        except (OSError, ValueError) as error:
            self._spawn(_reaped(looker.kill()))
            raise WorkloadError(
                f"the process that reads executables cannot run: {words_of(error)}",
                reason="executable_late",
            ) from error
        if said.get("far"):
            return None
        if said.get("gone"):
            peer.check()
            raise WorkloadError(
                f"/proc does not show the executable of process {peer.pid}",
                reason="executable_unreadable",
                advice="if /proc is mounted with hidepid, give the agent CAP_SYS_PTRACE",
            )
        if "error" in said:
            never = said.get("never")
            raise WorkloadError(
                f"the executable of process {peer.pid}: {said['error']}",
                reason="executable_refused" if never else "executable_unreadable",
                advice=said.get("advice", ""),
            )
        return Executable(
            path=said["path"], sha256=said.get("sha256"), fingerprint=tuple(said["fingerprint"])
        )

    async def _hangs(self, owner: _Owner, process: subprocess.Popen[bytes] | None) -> None:
        """Let the owner wait until the kernel releases its killed looker."""
        owner.stuck = True
        self._stuck += 1
        try:
            await _reaped(process)
        finally:
            owner.stuck = False
            self._stuck -= 1

    def _spawn(self, coroutine: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # read it, because the caller may have left

    # --- budgets --------------------------------------------------------------------------------

    def _owner(self, name: str) -> _Owner:
        now = self._clock.now().monotonic
        owner = self._owners.get(name)
        if owner is None:
            if len(self._owners) >= _OWNERS:
                self._forget_idle(now)
            if len(self._owners) >= _OWNERS:
                name = _OTHERS  # they share one budget, so many names gain nothing
            owner = self._owners.get(name)
        if owner is None:
            owner = self._owners[name] = _Owner(self.limits.burst, now, asyncio.Lock())
        return owner

    def _forget_idle(self, now: float) -> None:
        """Forget owners whose budget is full, so that forgetting refills none."""
        for name, owner in list(self._owners.items()):
            full = owner.left + (now - owner.at) * self.limits.rate >= self.limits.burst
            if full and not owner.turn.locked() and not owner.stuck:
                del self._owners[name]

    def _spend(self, owner: _Owner, size: int, peer: Peer) -> None:
        now = self._clock.now().monotonic
        left = min(self.limits.burst, owner.left + (now - owner.at) * self.limits.rate)
        owner.left, owner.at = left, now
        if size > left:
            raise WorkloadError(
                f"{peer.owner} has used up its budget for hashing executables; {size // _MIB} MiB "
                "have to wait",
                reason="executable_late",
                advice="wait; the agent hashes a file that does not change only once",
            )
        owner.left -= size


class _Looker:
    """One looker process, started at the first question, with one question at a time."""

    def __init__(self, *, nice: int) -> None:
        self._nice = nice
        self._row = FairRow()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    async def ask(
        self, request: dict[str, Any], seconds: float, *, size: int = 0
    ) -> dict[str, Any]:
        """Return the answer to a question about ``size`` bytes.

        The deadline begins with this question's turn.

        Raises:
            TimeoutError: there was no answer in time; kill the looker before awaiting anything
                else.
            OSError, ValueError: the looker ended or cannot be started; kill it too.
        """
        async with self._row.turn(size), asyncio.timeout(seconds):
            loop = asyncio.get_running_loop()
            channel = self._channel or self._start()
            await loop.sock_sendall(channel, json.dumps(request).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                more = await loop.sock_recv(channel, _ANSWER_BYTES)
                if not more or len(answer) > _ANSWER_BYTES:
                    raise ConnectionError("the looker ended")
                answer += more
            said: dict[str, Any] = json.loads(answer)
            return said

    def kill(self) -> subprocess.Popen[bytes] | None:
        """End the looker now, whatever it waits for; the next question starts another one."""
        process, self._process = self._process, None
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
        return process

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as owned:
            owned.callback(ours.close)
            ours.setblocking(False)  # noqa: FBT003  positional-only
            self._process = subprocess.Popen(  # noqa: S603  our own program, a fixed command line
                [sys.executable, "-I", "-S", str(_PROGRAM), str(self._nice)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
            )
            owned.pop_all()
        self._channel = ours
        return ours


async def _reaped(process: subprocess.Popen[bytes] | None) -> None:
    """Wait until a killed process is gone, which may take long if it hangs in the kernel."""
    pause = _FIRST_PAUSE_SECONDS
    while process is not None and process.poll() is None:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
