"""The order in which a change of policy reaches one Envoy.

A policy decides two things that an Envoy receives separately: who may connect (validation contexts)
and which requests they may send (authorization). Owns the order. If a change only widens what is
allowed, contexts go first; otherwise authorization goes first. So at no moment more is allowed than
one of the two policies allows. Invariants: the second part goes to a connection once it has ACKed
or NACKed the first, at the latest :data:`PATIENCE_SECONDS` later; a connection waits only for
itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from sds.faults import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.serving.conversation import Conversation

PATIENCE_SECONDS: Final = 0.2


class PolicyChangeOrder:
    """Holds back the second part of a change for each connection.

    Args:
        deliver: tells a conversation which names changed for it.
    """

    def __init__(self, deliver: Callable[[Conversation, tuple[str, ...]], None]) -> None:
        self._deliver = deliver
        self._first: str | None = None
        self._awaited: dict[str, set[Conversation]] = {}
        self._waiting: dict[str, list[tuple[Conversation, tuple[str, ...]]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, first: str) -> None:
        """Begin a change of policy; resources of the type ``first`` go before all others."""
        self.release_all()
        self._first = first
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PATIENCE_SECONDS, guarded("listener", self.release_all))

    def touch(self, conversation: Conversation, names: tuple[str, ...]) -> None:
        """Deliver changed names to a conversation now, or when it is its turn."""
        peer = conversation.stream.peer
        if self._first is None:
            self._deliver(conversation, names)
        elif conversation.type_url == self._first:
            self._awaited.setdefault(peer, set()).add(conversation)
            self._deliver(conversation, names)
        elif peer in self._awaited:
            self._waiting.setdefault(peer, []).append((conversation, names))
        else:
            self._deliver(conversation, names)

    def answered(self, conversation: Conversation) -> None:
        """Note that the client ACKed or NACKed something in this conversation."""
        peer = conversation.stream.peer
        awaited = self._awaited.get(peer)
        if awaited is not None and conversation in awaited:
            awaited.discard(conversation)
            if not awaited:
                self._release(peer)

    def gone(self, conversation: Conversation) -> None:
        """Forget a conversation that is over."""
        self.answered(conversation)
        waiting = self._waiting.get(conversation.stream.peer)
        if waiting is not None:
            waiting[:] = [one for one in waiting if one[0] is not conversation]

    def release_all(self) -> None:
        """Deliver everything that still waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._first = None
        for peer in list(self._awaited):
            self._release(peer)

    def _release(self, peer: str) -> None:
        self._awaited.pop(peer, None)
        for conversation, names in self._waiting.pop(peer, ()):
            self._deliver(conversation, names)
