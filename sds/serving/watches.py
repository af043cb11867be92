"""Which conversations of one caller watch which names of one type.

Owns the way from a change to the conversations that it concerns. Invariants: after a change, only
those names are looked up again whose content it may have changed, in slices
(:mod:`sds.serving.stale_names`); names that must go before others (session ticket keys) come first,
so that a changed context never meets older tickets.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Protocol

from sds.errors import SdsError
from sds.faults import guarded, report
from sds.serving.name_budget import name_cost
from sds.serving.slices import SLICE
from sds.serving.snapshot import Snapshot
from sds.shrinking_dict import ShrinkingDict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sds.secrets.store import ResourceKey
    from sds.serving.conversation import Conversation
    from sds.serving.encode import Resource
    from sds.workload.entitlement import Caller


class ResourceCatalog(Protocol):
    """Finds resources of one type."""

    def find(self, caller: Caller, name: str, *, strong: bool = False) -> Resource | None:
        """Return the resource that the name stands for, for this caller."""
        ...

    def is_expected(self, caller: Caller, name: str) -> bool:
        """Say whether a name is one that this caller will have something under."""
        ...

    def everything(self, caller: Caller) -> tuple[str, ...]:
        """Return the names that the wildcard stands for."""
        ...

    def names_of(self, caller: Caller, keys: Collection[ResourceKey]) -> list[str]:
        """Return the names, except those of policy, whose content depends on these stored keys."""
        ...

    def reloaded_names(self, caller: Caller) -> list[str]:
        """Return the names whose content comes from neither the store nor policy."""
        ...

    def first_names(self) -> Collection[str]:
        """Return the names that must be looked up before others."""
        ...

    def is_by_policy(self, name: str) -> bool:
        """Say whether policy decides what the name stands for, with stored things as a part."""
        ...

    def is_made_up(self, name: str) -> bool:
        """Say whether clients can make up such names and every one of them has a resource."""
        ...


class _Watched:
    """One name: the version that clients were told of last, and who watches it."""

    __slots__ = ("conversations", "version")

    def __init__(self, version: str | None) -> None:
        self.version = version
        self.conversations: dict[Conversation, None] = {}


class Watches:
    """The watched names of one caller and one type.

    Args:
        catalog: finds the resources behind names.
        caller: the caller as it is recognised now.
        touch: is told of each conversation and the names that changed for it.
    """

    def __init__(
        self,
        catalog: ResourceCatalog,
        caller: Callable[[], Caller],
        touch: Callable[[Conversation, tuple[str, ...]], None],
    ) -> None:
        self._catalog = catalog
        self._caller = caller
        # A fault with one name or conversation does not hold up any other.
        self._touch = guarded("listener", touch)
        self._snapshots: dict[bool, Snapshot] = {}
        self._watched: ShrinkingDict[str, _Watched] = ShrinkingDict()
        self._by_policy: ShrinkingDict[str, None] = ShrinkingDict()
        self._watching_everything: dict[Conversation, None] = {}
        self._all_stale = False
        """Whether conversations that watch everything still have to be told of a change."""
        self._stale: ShrinkingDict[str, None] = ShrinkingDict()
        """Names to look up again; those in :attr:`_next` come first, its last one at first."""
        self._next: list[str] = []
        self._untold: deque[tuple[tuple[str, ...], list[Conversation]]] = deque()
        """Names that changed, and the conversations that still have to be told."""

    def __len__(self) -> int:
        """Return how many names are watched."""
        return len(self._watched)

    def snapshot(self, *, strong: bool) -> Snapshot:
        """Return what the caller may have; all streams share one snapshot."""
        found = self._snapshots.get(strong)
        if found is None:
            found = self._snapshots[strong] = Snapshot(self._catalog, self._caller(), strong=strong)
        return found

    def watch(self, conversation: Conversation, name: str) -> int:
        """Watch this name for a conversation; return the name's bytes if it is new."""
        watched = self._watched.get(name)
        if watched is None:
            watched = self._watched[name] = _Watched(self._version(name))
            if self._catalog.is_by_policy(name):
                self._by_policy[name] = None
        if conversation in watched.conversations:
            return 0
        watched.conversations[conversation] = None
        return name_cost(name)

    def unwatch(self, conversation: Conversation, names: Iterable[str]) -> int:
        """Stop watching these names for a conversation; return their bytes."""
        size = 0
        for name in names:
            watched = self._watched.get(name)
            if watched is None or conversation not in watched.conversations:
                continue
            del watched.conversations[conversation]
            size += name_cost(name)
            if not watched.conversations:
                del self._watched[name]
                self._by_policy.take(name)
        return size

    def watch_everything(self, conversation: Conversation, *, on: bool) -> None:
        """Watch all names for a conversation, or again only those that it asked for."""
        if on:
            self._watching_everything[conversation] = None
        else:
            self._watching_everything.pop(conversation, None)

    def changed(self, keys: Collection[ResourceKey], *, with_policy: bool) -> None:
        """Note that these stored things changed."""
        names = self._catalog.names_of(self._caller(), keys)
        self._refresh(names, self._by_policy if with_policy else ())

    def reloaded(self) -> None:
        """Note that content changed that comes from files or is made here."""
        self._refresh(self._catalog.reloaded_names(self._caller()))

    def refresh(self) -> None:
        """Note that any name may stand for something else now."""
        self._refresh((), self._watched)

    def close(self) -> None:
        """Forget everything that was looked up."""
        self._all_stale = False
        self._stale.clear()
        self._next.clear()
        self._untold.clear()
        for snapshot in self._snapshots.values():
            snapshot.renew(self._caller())
        self._snapshots.clear()

    # --- looking again --------------------------------------------------------------------------

    def _refresh(self, names: Collection[str], many: Iterable[str] = ()) -> None:
        """Queue names for :meth:`look`: first ``names``, then ``many``.

        ``many`` may be all names that clients chose, so this method does no work for each of them.
        """
        for snapshot in self._snapshots.values():
            snapshot.renew(self._caller())
        for name in self._catalog.first_names():
            if name in self._watched and (name in names or name in many):
                self._compare(name)
        # A name that waits keeps its place, so that many changes cannot keep any from its turn.
        self._stale.update(dict.fromkeys(name for name in names if name in self._watched))
        self._stale.update(dict.fromkeys(many))
        self._all_stale = bool(self._watching_everything)

    @property
    def has_stale(self) -> bool:
        """Say whether there is something to look up or to tell."""
        return bool(self._untold or self._next or self._stale or self._all_stale)

    def look(self, most: int) -> int:
        """Look up names and tell conversations, at most ``most``; return how many that were."""
        done = 0
        while done < most:
            if self._untold:
                names, conversations = self._untold[0]
                while conversations and done < most:
                    self._touch(conversations.pop(), names)
                    done += 1
                if not conversations:
                    self._untold.popleft()
            elif self._next:
                done += 1
                self._compare(self._next.pop())
            elif self._stale:
                self._next = list(itertools.islice(self._stale, SLICE))
                for name in self._next:
                    del self._stale[name]
                self._next.reverse()
            elif self._all_stale:
                self._all_stale = False
                self._untold.append(((), list(reversed(self._watching_everything))))
            else:
                break
        return done

    def _compare(self, name: str) -> None:
        """Look a name up; if that fails, end the streams, which go on with nothing that was."""
        try:
            self._look_at(name)
        except Exception as error:  # noqa: BLE001  the boundary between one name and the others
            report("listener", error)
            watched = self._watched.get(name)
            for conversation in list(watched.conversations) if watched is not None else ():
                conversation.stream.end(
                    SdsError(
                        "a name cannot be looked up; the server's log says why", reason="internal"
                    )
                )

    def _look_at(self, name: str) -> None:
        """See whether what a name stands for has changed: then its conversations are told."""
        watched = self._watched.get(name)
        if watched is None:
            return
        version = self._version(name)
        if version != watched.version:
            watched.version = version
            self._untold.append(((name,), list(reversed(watched.conversations))))

    def _version(self, name: str) -> str | None:
        resource = self.snapshot(strong=False).find(name)
        return resource.receipt.version if resource is not None else None
