"""Delta: each request says which names come and which go.

Invariant: both lists of a request always apply, whatever its nonce; a name that the client asked
for is told once as removed where it does not exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sds.serving.subscription.messages import Outcome, R
from sds.serving.subscription.state import WILDCARD, Subscription, Watch

if TYPE_CHECKING:
    from sds.serving.subscription.messages import DeltaRequest, Receipt


class DeltaSubscription(Subscription[R]):
    """One stream of delta requests."""

    _TELLS_REMOVALS: ClassVar[bool] = True

    __slots__ = ()

    def receive(self, request: DeltaRequest) -> Outcome:
        """Take one request."""
        outcome = Outcome()
        first = not self._begun
        self._begun = True
        if request.nonce and not first:
            outcome.stale = not self._settle(outcome, request.nonce, request.error)
            if self.wildcard:
                self._disown(outcome.acked)
        added: dict[str, None] = {}
        dropped: dict[str, None] = {}
        if first and not request.subscribe:
            self.wildcard = self._all_due = True
        self._resubscribe(request, added, dropped)
        if first:
            for name, version in request.initial_versions.items():
                self._claim(name, version)
        outcome.added = tuple(added)
        outcome.dropped = tuple(dropped)
        return outcome

    def _resubscribe(
        self, request: DeltaRequest, added: dict[str, None], dropped: dict[str, None]
    ) -> None:
        """Apply both lists. What is in both is dropped and named again, so sent again."""
        # The wildcard goes first: a name that is dropped while it comes is told what it covers.
        if WILDCARD in request.unsubscribe:
            self._drop_wildcard(dropped)
        if WILDCARD in request.subscribe:
            self.wildcard = self._all_due = True
        for name in request.unsubscribe:
            self._unsubscribe(name, dropped)
        for name in request.subscribe:
            if name != WILDCARD:
                self._watches[name] = Watch(asked=True)
                self._due.add(name)
                added[name] = None
                dropped.pop(name, None)

    def _disown(self, acked: tuple[Receipt, ...]) -> None:
        """Tell what the wildcard does not cover of what the client has just taken.

        It had dropped the name before the response reached it, and has the wildcard since: it
        cannot know that the name is not covered.
        """
        for name, version, _ in acked:
            if name not in self._watches:
                watch = self._watches[name] = Watch(asked=False)
                watch.sent = version
                self._due.add(name)

    def _drop_wildcard(self, dropped: dict[str, None]) -> None:
        self.wildcard = False
        for name in [name for name, watch in self._watches.items() if not watch.asked]:
            del self._watches[name]
            dropped[name] = None

    def _unsubscribe(self, name: str, dropped: dict[str, None]) -> None:
        watch = self._watches.get(name)
        if watch is None or not watch.asked:
            return
        del self._watches[name]
        dropped[name] = None
        if self.wildcard:
            # The client must learn whether the wildcard covers the name: sent again, or removed.
            covered = self._watches[name] = Watch(asked=False)
            covered.sent = ""
            self._due.add(name)

    def _claim(self, name: str, version: str) -> None:
        """The client says that it has kept this version."""
        watch = self._watches.get(name)
        if watch is None:
            if not self.wildcard:
                return
            watch = self._watches[name] = Watch(asked=False)
        watch.sent = version
        watch.claimed = True
        self._due.add(name)
