"""Finds the sessions of callers that may have an identity.

Owns :class:`SessionsByIdentity`. A node renews hundreds of identities together and has thousands of
callers. Invariants: a change of one identity costs nothing for callers that may not have it; what
is found is right for each caller as it is recognised now.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sds.identity import Identity
    from sds.serving.session import CallerSession


class SessionsByIdentity:
    """The sessions, by each identity that their callers may have."""

    __slots__ = ("_filed", "_of")

    def __init__(self) -> None:
        self._of: dict[Identity, dict[CallerSession, None]] = {}
        self._filed: dict[CallerSession, tuple[tuple[Identity, ...], Callable[[], None]]] = {}
        """Under what each session is found, and what stops following its caller."""

    def add(self, session: CallerSession) -> None:
        """Find a session from now on, whatever becomes of its caller."""
        stop = session.entitlement.listen(functools.partial(self._file_again, session))
        self._file(session, stop)

    def remove(self, session: CallerSession) -> None:
        """Find it no more."""
        self._take_out(session)()

    def find(self, identities: Iterable[Identity]) -> list[CallerSession]:
        """Return the sessions whose callers may have one of these identities."""
        found = {session: None for each in identities for session in self._of.get(each, ())}
        return list(found)

    def _file_again(self, session: CallerSession) -> None:
        if session in self._filed:
            self._file(session, self._take_out(session))

    def _file(self, session: CallerSession, stop: Callable[[], None]) -> None:
        identities = session.caller.identities
        self._filed[session] = identities, stop
        for identity in identities:
            self._of.setdefault(identity, {})[session] = None

    def _take_out(self, session: CallerSession) -> Callable[[], None]:
        identities, stop = self._filed.pop(session)
        for identity in dict.fromkeys(identities):
            there = self._of[identity]
            del there[session]
            if not there:
                del self._of[identity]
        return stop
