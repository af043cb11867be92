"""The identities that callers of the node-wide socket may have, and for how long they are kept.

Owns :class:`WantedIdentities`. Invariants: rotation keeps an identity exactly while a caller may
have it, and a little longer: it rests then, for an Envoy that restarts; of one owner (a pod, or a
user outside pods), at most :data:`MOST_AT_REST` rest, or one that becomes many users, one after
the other, would fill the memory with their certificates.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Final, Protocol

from sds.faults import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sds.identity import Identity


MOST_AT_REST: Final = 64
"""How many identities are kept for callers of one owner that have left."""


class IdentityKeeper(Protocol):
    """Rotation, as recognition uses it."""

    def ensure(self, identity: Identity) -> None:
        """Get and renew a certificate for this identity until it is released."""
        ...

    def release(self, identity: Identity) -> None:
        """Give up an identity that rests, because no caller comes any more."""
        ...

    def rest(self, identity: Identity, *, resting: bool) -> None:
        """Keep a certificate without renewing it, as no caller may have it; or renew it again."""
        ...

    async def until_ready(self, identity: Identity) -> None:
        """Return as soon as a certificate of this identity can be served."""
        ...


class WantedIdentities:
    """Counts the callers of each identity.

    Args:
        keeper: keeps certificates.
        linger: how long an identity is kept after its last caller left, in seconds.
    """

    def __init__(self, keeper: IdentityKeeper, *, linger: float) -> None:
        self._keeper = keeper
        self._linger = linger
        self._callers: Counter[Identity] = Counter()
        self._lingering: dict[Identity, tuple[str, asyncio.TimerHandle]] = {}
        """Those without a caller: whose the last one was, and what releases them."""
        self._left_by: dict[str, dict[Identity, None]] = {}
        """The same by owner, the oldest first."""
        self._on_want: Callable[[Identity], None] = lambda _: None

    def when_wanted(self, call: Callable[[Identity], None]) -> None:
        """Call a function for each caller that is given an identity."""
        self._on_want = call

    def want(self, identity: Identity) -> None:
        """Note that one more caller may have this identity."""
        self._on_want(identity)
        self._callers[identity] += 1
        if identity in self._lingering:
            self._linger_no_more(identity)
            self._keeper.rest(identity, resting=False)
        elif self._callers[identity] == 1:
            self._keeper.ensure(identity)

    def unwant(self, identity: Identity, owner: str = "") -> None:
        """Note that one caller fewer, of this owner, may have this identity."""
        self._callers[identity] -= 1
        if self._callers[identity] == 0:
            del self._callers[identity]
            # It is kept for an Envoy that restarts, but not renewed, because its pod may be gone.
            self._keeper.rest(identity, resting=True)
            timer = asyncio.get_running_loop().call_later(
                self._linger, guarded("release of an identity", self._release_now), identity
            )
            self._lingering[identity] = (owner, timer)
            theirs = self._left_by.setdefault(owner, {})
            theirs[identity] = None
            if len(theirs) > MOST_AT_REST:
                self._release_now(next(iter(theirs)))

    async def until_ready(self, identities: Iterable[Identity]) -> None:
        """Return as soon as certificates of all these identities can be served."""
        for identity in identities:
            await self._keeper.until_ready(identity)

    def close(self) -> None:
        """Release identities that are kept a little longer."""
        for identity in list(self._lingering):
            self._release_now(identity)

    def _release_now(self, identity: Identity) -> None:
        self._linger_no_more(identity)
        self._keeper.release(identity)

    def _linger_no_more(self, identity: Identity) -> None:
        owner, timer = self._lingering.pop(identity)
        timer.cancel()
        theirs = self._left_by[owner]
        del theirs[identity]
        if not theirs:
            del self._left_by[owner]
