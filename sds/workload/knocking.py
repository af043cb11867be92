"""Who may connect while more connections come than can be looked at.

Owns :class:`Knocks`: how often each process, each user, and all users that nobody has recognised
together connected lately. Invariants: a crowd at the door costs a few microseconds each, because
those that knock too often are turned away before anything is found out about them; a user that was
recognised shares nothing with those that were not; the tables are bounded, and a name that is
forgotten gains nothing, since the next larger account counts it too.

Nothing here reads a clock: ``now`` is seconds of a monotonic one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from sds.errors import WorkloadError
from sds.transport.rate import Allowance

if TYPE_CHECKING:
    from collections.abc import Hashable

_PROCESS: Final = (20.0, 128.0)
"""Connections a second of one process, and at once."""
_USER: Final = (200.0, 1024.0)
_STRANGERS: Final = (300.0, 1024.0)
_KEYS: Final = 4096


class Knocks:
    """See the module."""

    def __init__(self) -> None:
        """Nobody has knocked."""
        self._accounts: OrderedDict[Hashable, Allowance] = OrderedDict()
        self._known: OrderedDict[int, None] = OrderedDict()
        self._strangers = Allowance(*_STRANGERS)

    def recognise(self, uid: int) -> None:
        """Somebody with this user ID has an identity."""
        self._known[uid] = None
        self._known.move_to_end(uid)
        if len(self._known) > _KEYS:
            self._known.popitem(last=False)

    def count(self, pid: int, uid: int, now: float, *, crowded: bool) -> None:
        """A process connected.

        Args:
            pid: of it; 0 if this program does not see it.
            uid: its user.
            now: seconds.
            crowded: whether more connections come than can be looked at.

        Raises:
            WorkloadError: ``connection_rate``: it is crowded, and the process or its user connects
                too often. What is turned away uses up nothing of the larger accounts.
        """
        accounts = [
            (f"process {pid}", self._account((uid, pid), _PROCESS)),
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
