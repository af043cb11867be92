"""Limits how often callers connect while more connections come than can be handled.

Owns :class:`ConnectionRates`: how often each process, each user, and all users that no rule has
recognised together connected lately. Invariants: each connection of a crowd costs a few
microseconds, because those that connect too often are turned away before the agent looks at them; a
recognised user shares no account with unrecognised ones; the tables are bounded, and a process or
user that they forget gains nothing, because the next larger account counts it too.

Nothing here reads a clock: ``now`` is seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from sds.errors import WorkloadError
from sds.transport.rate import Allowance

if TYPE_CHECKING:
    from collections.abc import Hashable

_PROCESS: Final = (20.0, 128.0)
"""How many connections one process may open: each second on average, and at once."""
_USER: Final = (200.0, 1024.0)
_STRANGERS: Final = (300.0, 1024.0)
_KEYS: Final = 4096


class ConnectionRates:
    """Counts connections by process and user."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._accounts: OrderedDict[Hashable, Allowance] = OrderedDict()
        self._known: OrderedDict[int, None] = OrderedDict()
        self._strangers = Allowance(*_STRANGERS)

    def recognise(self, uid: int) -> None:
        """Give this user an account of its own, because one of its processes has an identity."""
        self._known[uid] = None
        self._known.move_to_end(uid)
        if len(self._known) > _KEYS:
            self._known.popitem(last=False)

    def count(self, pid: int, uid: int, now: float, *, crowded: bool) -> None:
        """Count a connection of a process.

        Args:
            pid: the process; 0 if this program does not see it.
            uid: the user of the process.
            now: seconds of a monotonic clock.
            crowded: whether more connections come than can be handled.

        Raises:
            WorkloadError: ``connection_rate``: it is crowded, and the process or its user connects
                too often. A connection that is turned away uses up nothing of the larger accounts.
        """
        accounts = [
            (f"process {pid} of user {uid}", self._account((uid, pid), _PROCESS)),
            (f"user {uid}", self._account(uid, _USER)),
        ]
        if uid not in self._known:
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

    def _account(self, key: Hashable, rate: tuple[float, float]) -> Allowance:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Allowance(*rate)
            if len(self._accounts) > _KEYS:
                self._accounts.popitem(last=False)
        else:
            self._accounts.move_to_end(key)
        return account
