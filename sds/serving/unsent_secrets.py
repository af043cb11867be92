"""Resets connections that do not read output with a retired key.

Once a key is replaced or withdrawn, the copies that remain are in output that a client does not
read, or for which it opens no HTTP/2 window. Owns the bound on their life. Invariant:
:data:`RESET_SECONDS` after a secret retired, no connection has output from before that moment: the
output was sent, or the connection is reset. The module does not tell which output carries a secret:
a client that read nothing for so long loses little by a reset.

Only connections of our own transport are followed here; output of ``grpc.aio`` is in the memory of
grpc's core, which cannot be reached.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import weakref
from typing import TYPE_CHECKING, Any, Final

from sds.identity import Identity
from sds.trickle import Trickle

if TYPE_CHECKING:
    from sds.secrets.store import Change, SecretStore
    from sds.transport.served_connection import ServedConnection

_LOGGER = logging.getLogger(__name__)
RESET_SECONDS: Final = 5.0
"""Seconds from the end of a secret to the reset of a connection that still has it."""
_RESETS_A_TURN: Final = 8
_GATHER_SECONDS: Final = 0.25
"""Secrets that retire within this time share one look at all connections."""


class UnsentSecrets:
    """Follows the connections that were given secrets.

    Args:
        store: tells when an SVID retires. Call :meth:`retired` for other secrets.
    """

    def __init__(self, store: SecretStore) -> None:
        self._connections: weakref.WeakSet[ServedConnection] = weakref.WeakSet()
        self._timers: set[asyncio.TimerHandle] = set()
        self._looks = False
        self._resets = Trickle("connection", _RESETS_A_TURN)
        self._stop_listening = store.listen(self._on_change)

    def follow(self, context: Any) -> None:
        """Follow the connection of a call that is given secrets."""
        connection = getattr(context, "connection", None)
        if connection is not None:
            self._connections.add(connection)

    def retired(self) -> None:
        """Note that a secret was replaced or withdrawn."""
        if self._connections and not self._looks:
            self._looks = True
            self._after(_GATHER_SECONDS, self._look)

    def close(self) -> None:
        """Stop following connections."""
        self._stop_listening()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._resets.close()

    def _on_change(self, change: Change) -> None:
        if any(isinstance(key, Identity) for key in change.keys):
            self.retired()

    def _look(self) -> None:
        self._looks = False
        marks = [
            (weakref.ref(connection), mark)
            for connection in self._connections
            if (mark := connection.unsent()) is not None
        ]
        if marks:
            self._after(RESET_SECONDS - _GATHER_SECONDS, self._reset, marks)

    def _reset(self, marks: list[tuple[weakref.ref[ServedConnection], Any]]) -> None:
        for reference, mark in marks:
            self._resets.add(functools.partial(_reset_one, reference, mark))

    def _after(self, seconds: float, call: Any, *arguments: Any) -> None:
        def run() -> None:
            self._timers.discard(timer)
            call(*arguments)

        timer = asyncio.get_running_loop().call_later(seconds, run)
        self._timers.add(timer)


def _reset_one(reference: weakref.ref[ServedConnection], mark: Any) -> None:
    connection = reference()
    if connection is not None and connection.is_unsent(mark):
        _LOGGER.warning(
            "a connection was reset: it left output with a retired secret unread for %g s",
            RESET_SECONDS,
            extra={"peer": connection.peer, "reason": "retired_secret_unread"},
        )
        connection.abort()
