"""The delta protocol: each request says which names come and which go.

Invariants: both lists of a request always apply, whatever its nonce; a name that the client asked
for and that does not exist is reported once as removed, unless it is expected to come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sds.serving.name_budget import name_cost, text_cost
from sds.serving.slices import sliced
from sds.serving.subscription.messages import Outcome, R
from sds.serving.subscription.state import WILDCARD, Subscription, Watch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sds.serving.subscription.messages import DeltaRequest, Receipt


class DeltaSubscription(Subscription[R]):
    """One stream of delta requests."""

    _TELLS_REMOVALS: ClassVar[bool] = True

    __slots__ = ()

    def acknowledge(self, request: DeltaRequest) -> Outcome | None:
        """Take a request that ACKs a response and does nothing else, as nearly every request does.

        Otherwise return None: nothing has changed, and the request is one for :meth:`outcomes`.
        """
        if (
            request.error is not None
            or request.subscribe
            or request.unsubscribe
            or self.wildcard  # the ACK may make names due that the wildcard does not cover
        ):
            return None
        return self._acknowledge(request.nonce)

    def outcomes(self, request: DeltaRequest) -> Iterator[Outcome]:
        """Take one request in slices; finish it before taking the next one."""
        outcome = Outcome()
        first = not self._begun
        self._begun = True
        if request.nonce and not first:
            outcome.stale = not self._settle(outcome, request.nonce, request.error)
            if self.wildcard:
                self._disown(outcome.acked)
        if first and not request.subscribe and self._empty_is_all:
            self.wildcard = self._all_due = True
        yield outcome
        yield from self._resubscribe(request)
        if first:
            for some in sliced(tuple(request.initial_versions.items())):
                passing = 0
                for name, version in some:
                    passing += self._claim(name, version)
                yield Outcome(passing=passing)

    def _resubscribe(self, request: DeltaRequest) -> Iterator[Outcome]:
        """Apply both lists. A name in both counts as asked for again, so it is sent again."""
        named = frozenset(request.subscribe)
        # The wildcard goes first, so that a name dropped in the same request is reported as it
        # covers it.
        if WILDCARD in request.unsubscribe:
            for dropped in self._drop_wildcard(but=named):
                yield Outcome(dropped=dropped)
        if WILDCARD in named:
            self.wildcard = self._all_due = True
        for names in sliced(request.unsubscribe):
            dropped = tuple(name for name in names if name not in named and self._unsubscribe(name))
            # Under the wildcard, names are kept until the client was told whether it covers them.
            passing = sum(map(name_cost, dropped)) if self.wildcard else 0
            yield Outcome(dropped=dropped, passing=passing)
        for names in sliced(request.subscribe):
            added = dict.fromkeys(names)
            added.pop(WILDCARD, None)
            for name in added:
                self._ask(name)
            yield Outcome(added=tuple(added))

    def _disown(self, acked: tuple[Receipt, ...]) -> None:
        """Report which of the names that the client has just ACKed the wildcard does not cover.

        The client dropped such a name before the response reached it, and has the wildcard since,
        so it cannot know that the name is not covered.
        """
        for name, version, _ in acked:
            if name not in self._watches:
                watch = self._watches[name] = Watch(asked=False)
                watch.sent = version
                self._due[name] = None

    def _drop_wildcard(self, *, but: Collection[str]) -> Iterator[tuple[str, ...]]:
        """Let go of the names that only the wildcard covers, and yield them in slices."""
        self.wildcard = False
        covered = [name for name, watch in self._watches.items() if not watch.asked]
        for names in sliced(covered):
            for name in names:
                self._forget(name)
            yield tuple(name for name in names if name not in but)

    def _unsubscribe(self, name: str) -> bool:
        """Let go of a name, and say whether it was asked for."""
        watch = self._watches.get(name)
        if watch is None or not watch.asked:
            return False
        self._forget(name)
        if self.wildcard:
            # The client must learn whether the wildcard covers the name: it is sent again, or
            # removed.
            covered = self._watches[name] = Watch(asked=False)
            covered.sent = ""
            self._due[name] = None
        return True

    def _claim(self, name: str, version: str) -> int:
        """Note a version that the client claims to have; return the bytes that this takes."""
        watch = self._watches.get(name)
        cost = text_cost(version)
        if watch is None:
            if not self.wildcard:
                return 0
            watch = self._watches[name] = Watch(asked=False)
            cost += name_cost(name)
        watch.sent = version
        watch.claimed = True
        self._due[name] = None
        return cost
