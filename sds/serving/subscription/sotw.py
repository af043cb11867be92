"""The state-of-the-world protocol: each request has the whole list of names.

Invariant: a list that crossed a newer response can drop names but never add any.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.serving.name_budget import name_cost
from sds.serving.slices import sliced
from sds.serving.subscription.messages import Outcome, R
from sds.serving.subscription.state import FEW, WILDCARD, Subscription

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sds.serving.subscription.messages import SotwRequest


class SotwSubscription(Subscription[R]):
    """One stream of state-of-the-world requests."""

    __slots__ = ("_client_nonce", "_named")

    def __init__(self, *, empty_is_all: bool = True) -> None:
        """Begin a stream that has named nothing."""
        super().__init__(empty_is_all=empty_is_all)
        self._named = False
        """Whether the client named a resource here: then an empty list is not a wildcard."""
        self._client_nonce = ""
        """The nonce that the client answered last."""

    def acknowledge(self, request: SotwRequest) -> Outcome | None:
        """Take a request that ACKs the newest response and asks for the same names as before.

        Nearly every request is one. Otherwise return None: nothing has changed, and the request is
        one for :meth:`outcomes`.
        """
        if (
            request.error is not None
            or request.nonce != self._last_nonce
            or self.wildcard
            or len(request.names) > FEW
            or not self._asks_for(dict.fromkeys(request.names))
        ):
            return None
        outcome = self._acknowledge(request.nonce)
        if outcome is not None:
            self._client_nonce = request.nonce
        return outcome

    def outcomes(self, request: SotwRequest) -> Iterator[Outcome]:
        """Take one request in slices; finish it before taking the next one."""
        outcome = Outcome()
        # This counts for an ignored request too: the client knows that it has named something.
        self._named = self._named or bool(request.names)
        again = False
        if self._begun and request.nonce and self._last_nonce:
            settled = self._settle(outcome, request.nonce, request.error)
            again = not settled and request.error is None
            if request.nonce != self._last_nonce:
                yield from self._take_overtaken(outcome, request, settled=settled)
                return
            self._client_nonce = request.nonce
        self._begun = True
        if again and self._is_asked(request.names):
            yield outcome
            yield from self._ask_again()
            return
        yield from self._rename(outcome, request.names)

    def _take_overtaken(
        self, outcome: Outcome, request: SotwRequest, *, settled: bool
    ) -> Iterator[Outcome]:
        """Take a request that crossed a newer response, or that answers no response of ours.

        Its list of names is out of date, so it adds nothing and is not answered: the client sends
        its list again with the ACK of the newer response. But names that are missing from it are
        dropped, because the client may name them again in that ACK and then wants them sent again.
        """
        if settled or request.nonce == self._client_nonce:
            self._client_nonce = request.nonce
            if not self._is_wildcard(request.names):
                self.wildcard = False
                for outcome.dropped, outcome.passing in self._drop_all_but(set(request.names)):
                    yield outcome
                    outcome = Outcome()
        else:
            outcome.stale = True
        yield outcome

    def _is_wildcard(self, names: tuple[str, ...]) -> bool:
        return WILDCARD in names or (self._empty_is_all and not self._named)

    def _is_asked(self, names: tuple[str, ...]) -> bool:
        """Say whether this is the list that the client sent before."""
        wanted = set(names) - {WILDCARD}
        asked = {name for name, watch in self._watches.items() if watch.asked}
        return self.wildcard == self._is_wildcard(names) and wanted == asked

    def _ask_again(self) -> Iterator[Outcome]:
        """Let everything be sent again, because the client asks for it without an answer to give.

        Envoy does so when something new in it uses a name that it has already: the new part waits
        for a response of its own.
        """
        for some in sliced(tuple(self._watches)):
            for name in some:
                self._watches[name].sent = None
                self._due[name] = None
            yield Outcome()

    def _rename(self, outcome: Outcome, names: tuple[str, ...]) -> Iterator[Outcome]:
        """Make ``names`` the names that are asked for."""
        wanted = dict.fromkeys(names)
        wildcard = self._is_wildcard(names)
        wanted.pop(WILDCARD, None)
        if not (wildcard or self.wildcard) and self._asks_for(wanted):
            yield outcome  # as nearly every ACK does
            return
        if wildcard and not self.wildcard:
            self._all_due = True
        self.wildcard = wildcard
        for outcome.dropped, outcome.passing in self._drop_all_but(wanted):
            yield outcome
            outcome = Outcome()
        added = tuple(
            name for name in wanted if (watch := self._watches.get(name)) is None or not watch.asked
        )
        for some in sliced(added):
            outcome.added = tuple(some)
            for name in some:
                self._ask(name)
            yield outcome
            outcome = Outcome()
        yield outcome

    def _asks_for(self, wanted: Collection[str]) -> bool:
        """Say whether these names, and no others, are asked for already."""
        if len(wanted) != len(self._watches):
            return False
        for name in wanted:
            watch = self._watches.get(name)
            if watch is None or not watch.asked:
                return False
        return True

    def _drop_all_but(self, wanted: Collection[str]) -> Iterator[tuple[tuple[str, ...], int]]:
        """Let go of the names that are not asked for (any more).

        Yields them in slices, each with the bytes of those names that are kept until they are
        looked at.
        """
        for some in sliced([name for name in self._watches if name not in wanted]):
            dropped = []
            for name in some:
                watch = self._watches[name]
                if not self.wildcard:
                    self._forget(name)
                    dropped.append(name)
                elif watch.asked:
                    # It stays if the wildcard covers it, which the next look decides; it is not
                    # sent again.
                    watch.asked = False
                    self._due[name] = None
                    dropped.append(name)
            yield tuple(dropped), sum(map(name_cost, dropped)) if self.wildcard else 0
