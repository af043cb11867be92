"""Limits how often callers connect while more connections come than can be handled.

Owns :class:`ConnectionRates`: how often each process, each owner (a pod, or a user outside pods),
and all users that no rule has recognised together connected lately. Invariants: each connection of
a crowd costs a few microseconds, because those that connect too often are turned away before the
agent looks at them, and of a process only its first connections ask which pod it is in; a pod
shares no account with anybody, although pods of one image have the same user, and a recognised user
shares none with unrecognised ones; the tables are bounded, and a process or owner that they forget
gains nothing, because the next larger account counts it too.

Pods share no account even before they are recognised: an author of pods makes users without end in
one pod, but no pods without end.

Nothing here reads a clock: ``now`` is seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from sds.errors import WorkloadError
from sds.transport.rate import Allowance

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_PROCESS: Final = (20.0, 128.0)
"""How many connections one process may open: each second on average, and at once."""
_OWNER: Final = (200.0, 1024.0)
_STRANGE_POD: Final = (40.0, 256.0)
_STRANGERS: Final = (300.0, 1024.0)
_KEYS: Final = 4096


class ConnectionRates:
    """Counts connections by process and owner."""

    def __init__(self) -> None:
        self._accounts: OrderedDict[Hashable, Allowance] = OrderedDict()
        self._pods: OrderedDict[tuple[int, int], str] = OrderedDict()
        """The pods of processes that connected lately; the empty string outside pods."""
        self._known: OrderedDict[str, None] = OrderedDict()
        self._strangers = Allowance(*_STRANGERS)

    def recognise(self, owner: str) -> None:
        """Give this owner a larger account of its own: one of its processes has an identity.

        Args:
            owner: a pod or a user by the name that :meth:`count` was told.
        """
        self._known[owner] = None
        self._known.move_to_end(owner)
        if len(self._known) > _KEYS:
            self._known.popitem(last=False)

    def count(
        self,
        pid: int,
        uid: int,
        now: float,
        *,
        crowded: bool,
        pod: Callable[[], str] = str,
        user: str = "",
    ) -> None:
        """Count a connection of a process.

        Args:
            pid: the process; 0 if this program does not see it.
            uid: the user of the process.
            now: seconds of a monotonic clock.
            crowded: whether more connections come than can be handled.
            pod: finds the name of the process's pod; it gives the empty string outside pods.
            user: the owner as which the user counts outside pods; ``uid NUMBER`` if left out.

        Raises:
            WorkloadError: ``connection_rate``: it is crowded, and the process or its owner connects
                too often. A connection that is turned away uses up nothing of the larger accounts.
        """
        process = self._account((uid, pid), _PROCESS)
        theirs = self._pod_of((uid, pid), pod, is_new=process.is_full(now))
        owner = theirs or user or f"uid {uid}"
        is_known = owner in self._known
        accounts = [(f"process {pid} of user {uid}", process)]
        if theirs and not is_known:
            strange = self._account((owner,), _STRANGE_POD)
            accounts.append((f"{owner}, which no rule recognises", strange))
        else:
            accounts.append((theirs or user or f"user {uid}", self._account(owner, _OWNER)))
        if not (theirs or is_known):
            accounts.append(("users that no rule recognises", self._strangers))
        for whose, account in accounts:
            rest = account.rest_seconds(now)
            if crowded and rest:
                raise WorkloadError(
                    f"too many connections are opened by {whose}",
                    advice="keep connections open, or find out who opens so many",
                    reason="connection_rate",
                )
            if not rest:
                account.use(1, now)

    def _pod_of(self, process: tuple[int, int], pod: Callable[[], str], *, is_new: bool) -> str:
        """Return the pod of a process; ask again if it has not connected for a while.

        Its number may have another process by then.
        """
        found = None if is_new else self._pods.get(process)
        if found is None:
            found = self._pods[process] = pod()
            if len(self._pods) > _KEYS:
                self._pods.popitem(last=False)
        self._pods.move_to_end(process)
        return found

    def _account(self, key: Hashable, rate: tuple[float, float]) -> Allowance:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Allowance(*rate)
            if len(self._accounts) > _KEYS:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(key)
        return account
