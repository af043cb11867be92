"""One subscription: the whole xDS protocol of one stream, without I/O, clock or asyncio.

Theory of operation
===================

A stream is a conversation about *names*. The client says which names it wants; the server says
what stands under each name, under a version, each time that changes. This module holds the state
of one such conversation and decides; it never waits and never encodes.

Two calls drive it:

* ``receive(request)`` takes one parsed request and changes *what is wanted* and *what is known to
  have arrived*. It returns an :class:`Outcome`: what was ACKed or NACKed, which names came and
  went. It never answers.
* ``respond(view, nonce)`` looks at the names that are *due* (asked for, or touched by a change of
  content since the last look), compares the version that stands in the view **now** with the
  version that was sent last, and returns an :class:`Answer`. ``touch(names)`` makes names due.

Because ``respond`` reads the newest content when it is called and not when the change happened, a
slow reader never has a queue: while one response is on its way any number of changes collapse into
one set of due names (the latest wins). And because a name is sent only where its version differs
from the version sent last, nothing unchanged is ever sent twice, an ACK and a NACK are both
answered by silence, and refused content is never repeated: only new content has a new version. The
one exception is a name that is subscribed (again): its memory is erased, so it is sent always.

State per name is a :class:`_Watch`: the version sent last, the one ACKed last, the last refusal.
State per response that is not answered yet is its nonce and the receipts of what was in it, never
its bytes; at most :data:`MAX_OUTSTANDING` of them, so that a client that never ACKs costs nothing.

State of the world and delta differ in three points only, each in the class of its name:

========================  ===============================  =========================================
                          state of the world               delta
========================  ===============================  =========================================
names                     the whole list each time         subscribe and unsubscribe lists
a stale nonce             voids the whole request          voids the ACK only, never the lists
nothing under a name      silence                          told once, in ``removed_resources``
========================  ===============================  =========================================

Rules and where they come from (xDS protocol: Envoy's document "xDS REST and gRPC protocol"):

* The empty list of a first request, and ``*``, are the wildcard ("How the client specifies what
  resources to return"). An empty list after names is an unsubscription.
* A request with ``error_detail`` is a NACK, whatever its version ("ACK and NACK").
* The first request of a stream begins anew: its nonce and error belong to a former stream
  ("When to send an update": nonces are valid within one stream only). In delta its
  ``initial_resource_versions`` say what the client has kept.
* State of the world may send the changed resources only: for every type but listeners and clusters
  a resource that is missing from a response is unchanged ("Grouping resources into responses").
* A client that drops a name while it has the wildcard is told what stands under that name from now
  on ("Unsubscribing from resources"): the resource again, or its removal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, Generic, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sds.secrets.store import ResourceKey, Version

WILDCARD: Final = "*"
MAX_OUTSTANDING: Final = 32
"""Responses whose ACK is waited for; the oldest is forgotten beyond that."""


class Receipt(NamedTuple):
    """What remains of a resource once it was sent: never its content.

    Attributes:
        name: the resource name.
        version: its version on the wire.
        parts: the stored secrets that are in it, for the store's books.
    """

    name: str
    version: str
    parts: tuple[tuple[ResourceKey, Version], ...] = ()


class Named(Protocol):
    """A resource, as far as a subscription has to know it."""

    @property
    def receipt(self) -> Receipt:
        """Name, version and parts."""
        ...


R = TypeVar("R", bound=Named)
R_co = TypeVar("R_co", bound=Named, covariant=True)


class View(Protocol[R_co]):
    """What a caller may have at this moment."""

    def find(self, name: str) -> R_co | None:
        """The resource under a name; None where it is not there (yet) or not the caller's."""
        ...

    def everything(self) -> Collection[str]:
        """The names that the wildcard stands for."""
        ...


@dataclass(frozen=True, slots=True)
class SotwRequest:
    """A DiscoveryRequest, as far as a subscription has to know it.

    Attributes:
        names: ``resource_names``.
        nonce: ``response_nonce``, empty where there is none.
        error: the message of ``error_detail``; None where the request carries none.
    """

    names: tuple[str, ...] = ()
    nonce: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class DeltaRequest:
    """A DeltaDiscoveryRequest, as far as a subscription has to know it.

    Attributes:
        subscribe: ``resource_names_subscribe``.
        unsubscribe: ``resource_names_unsubscribe``.
        initial_versions: ``initial_resource_versions``.
        nonce: ``response_nonce``, empty where there is none.
        error: the message of ``error_detail``; None where the request carries none.
    """

    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str | None = None


@dataclass(slots=True)
class Outcome:
    """What one request meant.

    Attributes:
        acked: what the client has taken.
        nacked: what it has refused, with ``error`` in its own words.
        error: why, for ``nacked``; None where nothing was refused.
        stale: the nonce is not one that is waited for.
        added: names that are wanted from now on.
        dropped: names that are not asked for any more.
    """

    acked: tuple[Receipt, ...] = ()
    nacked: tuple[Receipt, ...] = ()
    error: str | None = None
    stale: bool = False
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """What to send now.

    Attributes:
        resources: new content.
        removed: names to tell as removed (delta only).
        absent: names that were asked for and do not exist for this caller; told once per request.
        held: what the client had kept from an earlier stream and need not be sent (delta only).
    """

    resources: list[R] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    held: list[Receipt] = field(default_factory=list)

    @property
    def has_content(self) -> bool:
        """Whether there is anything to put on the wire."""
        return bool(self.resources or self.removed)


class Watched(NamedTuple):
    """The state of one name, for people.

    Attributes:
        name: the resource name.
        sent: version sent last, or None.
        acked: version ACKed last, or None.
        refused: version NACKed last, or None.
        error: the client's words about ``refused``.
    """

    name: str
    sent: str | None
    acked: str | None
    refused: str | None
    error: str


class _Watch:
    """The state of one name; see the module."""

    __slots__ = ("absence_told", "acked", "asked", "claimed", "error", "refused", "sent")

    def __init__(self, *, asked: bool) -> None:
        self.asked = asked
        """Asked for by name, not only by the wildcard."""
        self.sent: str | None = None
        self.acked: str | None = None
        self.refused: str | None = None
        self.error = ""
        self.claimed = False
        """``sent`` is what the client says that it has kept from an earlier stream."""
        self.absence_told = False


class Subscription(Generic[R]):
    """What state of the world and delta have in common; see the module."""

    _TELLS_REMOVALS: ClassVar[bool] = False
    __slots__ = (
        "_all_due",
        "_begun",
        "_due",
        "_last_nonce",
        "_outstanding",
        "_watches",
        "wildcard",
    )

    def __init__(self) -> None:
        """A stream begins."""
        self._watches: dict[str, _Watch] = {}
        self._due: set[str] = set()
        self._all_due = False
        self._outstanding: dict[str, tuple[Receipt, ...]] = {}
        self._last_nonce = ""
        self._begun = False
        self.wildcard = False

    # --- asked from outside ---------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """Names that are watched: asked for, or sent under the wildcard."""
        return tuple(self._watches)

    def __len__(self) -> int:
        """How many names are watched."""
        return len(self._watches)

    def watched(self) -> Iterator[Watched]:
        """The state of each name."""
        for name, watch in self._watches.items():
            yield Watched(name, watch.sent, watch.acked, watch.refused, watch.error)

    def has_due(self) -> bool:
        """Whether there is anything to look at."""
        return self._all_due or bool(self._due)

    def touch(self, names: Iterable[str]) -> None:
        """The content under these names may have changed (or come, or gone)."""
        if self.wildcard:
            self._due.update(names)
        else:
            self._due.update(name for name in names if name in self._watches)

    def touch_all(self) -> None:
        """Any content may have changed."""
        self._all_due = True

    # --- inside ---------------------------------------------------------------------------------

    def _settle(self, outcome: Outcome, nonce: str, error: str | None) -> bool:
        """Book an ACK or a NACK; False where nothing waits under this nonce."""
        receipts = self._outstanding.pop(nonce, None)
        if receipts is None:
            return False
        if error is None:
            outcome.acked = receipts
        else:
            outcome.nacked = receipts
            outcome.error = error
        for name, version, _ in receipts:
            watch = self._watches.get(name)
            if watch is None:
                continue
            if error is None:
                watch.acked = version
                watch.refused = None
                watch.error = ""
            else:
                watch.refused = version
                watch.error = error
        return True

    def respond(self, view: View[R], nonce: str) -> Answer[R] | None:
        """What to send now, under ``nonce``; None where there is nothing to send or tell."""
        if not (self._due or self._all_due):
            return None
        answer: Answer[R] = Answer()
        everything = frozenset(view.everything()) if self.wildcard else frozenset()
        for name in self._take_due(everything):
            watch = self._watches.get(name)
            covered = (watch is not None and watch.asked) or name in everything
            resource = view.find(name) if covered else None
            if resource is not None:
                self._take_content(answer, name, resource)
            elif watch is not None:
                self._take_absence(answer, name, watch)
        if answer.has_content:
            self._book(nonce, answer.resources)
            return answer
        return answer if answer.absent or answer.held else None

    def _take_due(self, everything: frozenset[str]) -> list[str]:
        due = self._due
        if self._all_due:
            due = due.union(self._watches, everything)
            self._all_due = False
        self._due = set()
        return sorted(due)

    def _take_content(self, answer: Answer[R], name: str, resource: R) -> None:
        """There is content under a name that is watched."""
        watch = self._watches.get(name)
        if watch is None:
            watch = self._watches[name] = _Watch(asked=False)
        version = resource.receipt.version
        if watch.sent != version:
            watch.sent = version
            answer.resources.append(resource)
        elif watch.claimed:
            watch.acked = version
            answer.held.append(resource.receipt)
        watch.claimed = False
        watch.absence_told = False

    def _take_absence(self, answer: Answer[R], name: str, watch: _Watch) -> None:
        """There is nothing (any more) under a name that is watched."""
        never_told = watch.asked and not watch.absence_told
        if never_told and watch.sent is None:
            answer.absent.append(name)
        if self._TELLS_REMOVALS and (never_told or watch.sent is not None):
            answer.removed.append(name)
        watch.sent = None
        watch.absence_told = True
        if not watch.asked:
            del self._watches[name]

    def _book(self, nonce: str, resources: list[R]) -> None:
        """Remember what goes out under ``nonce``."""
        self._last_nonce = nonce
        if len(self._outstanding) >= MAX_OUTSTANDING:
            del self._outstanding[next(iter(self._outstanding))]
        self._outstanding[nonce] = tuple(resource.receipt for resource in resources)


class SotwSubscription(Subscription[R]):
    """State of the world; see the module."""

    __slots__ = ("_client_nonce", "_named")

    def __init__(self) -> None:
        """A stream begins."""
        super().__init__()
        self._named = False
        """The client has named a resource on this stream: an empty list is no wildcard now."""
        self._client_nonce = ""
        """The nonce that the client has taken last."""

    def receive(self, request: SotwRequest) -> Outcome:
        """Take one request; see the module."""
        outcome = Outcome()
        # True of a request that is ignored, too: the client knows that it has named something.
        self._named = self._named or bool(request.names)
        if self._begun and request.nonce and self._last_nonce:
            settled = self._settle(outcome, request.nonce, request.error)
            if request.nonce != self._last_nonce:
                self._take_overtaken(outcome, request, settled=settled)
                return outcome
            self._client_nonce = request.nonce
        self._begun = True
        self._rename(outcome, request.names)
        return outcome

    def _take_overtaken(self, outcome: Outcome, request: SotwRequest, *, settled: bool) -> None:
        """Take a request that a newer response has crossed on the way, or that is none of ours.

        Its list of names is out of date, so it adds nothing and is not answered: the client sends
        its list again with the ACK of the newer response. But what it drops is dropped: the
        client may name it again in that ACK, and then wants it sent anew.
        """
        if settled or request.nonce == self._client_nonce:
            self._client_nonce = request.nonce
            if not self._is_wildcard(request.names):
                self.wildcard = False
                outcome.dropped = tuple(self._drop_all_but(set(request.names)))
        else:
            outcome.stale = True

    def _is_wildcard(self, names: tuple[str, ...]) -> bool:
        return WILDCARD in names or not self._named

    def _rename(self, outcome: Outcome, names: tuple[str, ...]) -> None:
        """Make ``names`` the names that are asked for."""
        wanted = dict.fromkeys(names)
        wildcard = self._is_wildcard(names)
        wanted.pop(WILDCARD, None)
        if wildcard and not self.wildcard:
            self._all_due = True
        self.wildcard = wildcard
        outcome.dropped = tuple(self._drop_all_but(wanted))
        outcome.added = tuple(
            name for name in wanted if (watch := self._watches.get(name)) is None or not watch.asked
        )
        for name in outcome.added:
            self._watches[name] = _Watch(asked=True)
            self._due.add(name)

    def _drop_all_but(self, wanted: Collection[str]) -> Iterator[str]:
        """Let go of the names that are not asked for (any more); yields them."""
        for name in [name for name in self._watches if name not in wanted]:
            if not self.wildcard:
                del self._watches[name]
                yield name
            elif self._watches[name].asked:
                # Stays if the wildcard covers it, which the next look decides; sent again never.
                self._watches[name].asked = False
                self._due.add(name)
                yield name


class DeltaSubscription(Subscription[R]):
    """Delta; see the module."""

    _TELLS_REMOVALS: ClassVar[bool] = True

    __slots__ = ()

    def receive(self, request: DeltaRequest) -> Outcome:
        """Take one request; see the module."""
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
                self._watches[name] = _Watch(asked=True)
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
                watch = self._watches[name] = _Watch(asked=False)
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
            covered = self._watches[name] = _Watch(asked=False)
            covered.sent = ""
            self._due.add(name)

    def _claim(self, name: str, version: str) -> None:
        """The client says that it has kept this version."""
        watch = self._watches.get(name)
        if watch is None:
            if not self.wildcard:
                return
            watch = self._watches[name] = _Watch(asked=False)
        watch.sent = version
        watch.claimed = True
        self._due.add(name)
