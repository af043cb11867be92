"""The ``unix`` attestor: user, groups and executable of the calling process.

Invariants: the executable is the file that the process runs (a separate process opens it, see
:mod:`sds.workload.executables`), never the file that has its path now; if an executable cannot be
read, path and digest are unknown, so no rule on them is decided; a process that executes another
program after its first look has no path and no digest on that connection from then on, even if that
program is one that the agent never reads.

docs/adr/0605-what-an-executable-proves.md says what these selectors prove and what not.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sds.errors import ConfigurationError, PeerGoneError, WorkloadError
from sds.untrusted_input import words_of
from sds.workload.entitlement import Selector
from sds.workload.executables import ExecutableLimits, Executables
from sds.workload.facts import Facts
from sds.workload.peer import MOST_GROUPS
from sds.workload.unmapped_ids import UnmappedIds, unmapped_ids

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from sds.workload.attestors import NodeContext
    from sds.workload.executables import Executable
    from sds.workload.peer import Peer

EXECUTABLE_TYPES: Final = frozenset({"unix:path", "unix:sha256"})
_GROUP: Final = "unix:supplementary-gid"
_SHA256: Final = "unix:sha256"


class UnixAttestor:
    """Finds ``unix:uid``, ``:gid``, ``:supplementary-gid``, and ``unix:path``, ``:sha256``."""

    name = "unix"
    costly = EXECUTABLE_TYPES

    def __init__(self, executables: Executables, *, unmapped: UnmappedIds | None = None) -> None:
        """Attest by these.

        Args:
            executables: only if a rule needs a path or a digest.
            unmapped: IDs that stand for everybody whom our user namespace does not map.
        """
        self._executables = executables
        self._unmapped = unmapped if unmapped is not None else UnmappedIds()

    async def attest(self, peer: Peer, needed: frozenset[str]) -> Facts:
        """Return the caller's user and groups, and its executable if ``needed`` names a fact of it.

        Raises:
            PeerGoneError: the process has ended.
        """
        found: set[Selector] = set()
        unknown: dict[str, WorkloadError] = {}
        unmapped = self._unmapped
        for kind, number, nobody in (
            ("unix:uid", peer.uid, unmapped.uid),
            ("unix:gid", peer.gid, unmapped.gid),
        ):
            if number == nobody:
                unknown[kind] = _not_mapped(peer, number)
            else:
                found.add(Selector(kind, str(number)))
        if peer.groups is None:
            unknown[_GROUP] = _too_many_groups(peer)
        else:
            found |= {Selector(_GROUP, str(one)) for one in peer.groups if one != unmapped.gid}
        if needed & EXECUTABLE_TYPES:
            try:
                executable = await self._executables.read(peer, digest=_SHA256 in needed)
            except PeerGoneError:
                raise
            except WorkloadError as error:
                if error.reason == "executable_refused" and peer.executed is not None:
                    peer.executed = ()  # it executed another file than at the first look
                else:
                    unknown |= dict.fromkeys(EXECUTABLE_TYPES, error)
            else:
                found |= _selectors(executable, peer)
        peer.check()
        return Facts(
            selectors=frozenset(found), unknown=unknown, title=f"uid {peer.uid} pid {peer.pid}"
        )

    async def aclose(self) -> None:
        """End the processes that look at executables."""
        await self._executables.aclose()

    def notices(self) -> tuple[str, ...]:
        """Return nothing: what an operator should know is in each caller's own facts."""
        return ()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does nothing: no event announces a changed executable."""
        del listener
        return lambda: None


class _Kind:
    @contextlib.asynccontextmanager
    async def open(self, node: NodeContext) -> AsyncIterator[UnixAttestor]:
        largest = node.settings.largest_executable
        limits = ExecutableLimits(largest=largest, burst=2 * largest)
        executables = Executables(node.clock, limits)
        try:
            yield UnixAttestor(executables, unmapped=_unmapped_ids())
        finally:
            await executables.aclose()


KIND: Final = _Kind()


def _unmapped_ids() -> UnmappedIds:
    """Of our user namespace.

    Raises:
        ConfigurationError: the kernel does not say which they are.
    """
    try:
        return unmapped_ids()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            "the agent cannot find out which users the kernel shows as one here: "
            f"{words_of(error)}",
            advice="mount /proc unchanged: the agent reads /proc/self/uid_map",
        ) from error


def _not_mapped(peer: Peer, number: int) -> WorkloadError:
    return WorkloadError(
        f"the kernel shows process {peer.pid} with the ID {number}, which stands for everybody "
        "whom the agent's user namespace does not map",
        reason="peer_credentials",
        advice="run the agent in the node's user namespace, or write no rule on users and groups",
    )


def _too_many_groups(peer: Peer) -> WorkloadError:
    return WorkloadError(
        f"process {peer.pid} is in more than {MOST_GROUPS} groups",
        reason="too_many_facts",
        advice="start it with fewer, or write no rule on unix:supplementary-gid for it",
    )


def _selectors(executable: Executable, peer: Peer) -> set[Selector]:
    """Return path and digest; none if the process has executed another file since."""
    file = executable.fingerprint[:2]
    if peer.executed is None:
        peer.executed = file
    if file != peer.executed:
        peer.executed = ()  # for good, even if the process executes the first file again
        return set()
    found = {Selector("unix:path", executable.path)}
    if executable.sha256 is not None:
        found.add(Selector(_SHA256, executable.sha256))
    return found
