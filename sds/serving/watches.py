"""Which conversations of one caller watch which name of one type.

Owns the way from a change to the conversations that it concerns. Invariants: a change looks only at
names whose content it can have changed, in slices (:mod:`sds.serving.looks`); names that must go
before others (session ticket keys) are looked at first, so that a changed context never meets
tickets from before.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING, Protocol

from sds.faults import guarded
from sds.serving.names import name_cost
from sds.serving.slices import SLICE
from sds.serving.snapshot import Snapshot
from sds.slim import SlimDict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sds.secrets.store import ResourceKey
    from sds.serving.conversation import Conversation
    from sds.serving.encode import Resource
    from sds.workload.entitlement import Caller


class ResourceCatalog(Protocol):
    """What there is of one type."""

    def find(self, caller: Caller, name: str, *, strong: bool = False) -> Resource | None:
        """What the name stands for, for this caller."""
        ...

    def everything(self, caller: Caller) -> tuple[str, ...]:
        """What the wildcard stands for."""
        ...

    def names_of(self, caller: Caller, keys: Collection[ResourceKey]) -> list[str]:
        """The names whose content depends on these stored things, those of policy left out."""
        ...

    def reloaded_names(self, caller: Caller) -> list[str]:
        """The names whose content comes from elsewhere than the store or policy."""
        ...

    def first_names(self) -> Collection[str]:
        """The names that must be looked at before others."""
        ...

    def is_by_policy(self, name: str) -> bool:
        """Whether policy decides what the name stands for, and stored things are part of it."""
        ...

    def is_made_up(self, name: str) -> bool:
        """Whether clients can make up such names, and there is something behind each."""
        ...


class _Watched:
    """One name: the version that clients were told of last, and who watches it."""

    __slots__ = ("conversations", "version")

    def __init__(self, version: str | None) -> None:
        self.version = version
        self.conversations: dict[Conversation, None] = {}


class Watches:
    """The watched names of one caller and one type; see the module.

    Args:
        catalog: where names are looked up.
        caller: who the caller is now.
        touch: told of each conversation and the names that changed for it.
    """

    def __init__(
        self,
        catalog: ResourceCatalog,
        caller: Callable[[], Caller],
        touch: Callable[[Conversation, tuple[str, ...]], None],
    ) -> None:
        self._catalog = catalog
        self._caller = caller
        # One name's or conversation's fault holds up no other.
        self._touch = guarded("listener", touch)
        self._compare = guarded("listener", self._look_at)
        self._snapshots: dict[bool, Snapshot] = {}
        self._watched: SlimDict[str, _Watched] = SlimDict()
        self._by_policy: SlimDict[str, None] = SlimDict()
        self._watching_everything: dict[Conversation, None] = {}
        self._all_stale = False
        """Conversations that watch everything were not told of a change yet."""
        self._stale: SlimDict[str, None] = SlimDict()
        """Names to look at; of those, :attr:`_next` come first, the last one of them at first."""
        self._next: list[str] = []
        self._untold: deque[tuple[tuple[str, ...], list[Conversation]]] = deque()
        """Names that changed, and the conversations that were not told yet."""

    def __len__(self) -> int:
        """How many names are watched."""
        return len(self._watched)

    def snapshot(self, *, strong: bool) -> Snapshot:
        """What the caller may have; one snapshot for all streams."""
        found = self._snapshots.get(strong)
        if found is None:
            found = self._snapshots[strong] = Snapshot(self._catalog, self._caller(), strong=strong)
        return found

    def watch(self, conversation: Conversation, name: str) -> int:
        """The client wants to hear of this name; returns its bytes if it is new."""
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
        """The client does not want to hear of these names any more; returns their bytes."""
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
        """The client wants to hear of all names, or of those only that it watches."""
        if on:
            self._watching_everything[conversation] = None
        else:
            self._watching_everything.pop(conversation, None)

    def changed(self, keys: Collection[ResourceKey], *, with_policy: bool) -> None:
        """These stored things changed."""
        names = self._catalog.names_of(self._caller(), keys)
        self._refresh(names, self._by_policy if with_policy else ())

    def reloaded(self) -> None:
        """What comes from files, or is made here, changed."""
        self._refresh(self._catalog.reloaded_names(self._caller()))

    def refresh(self) -> None:
        """Any name may stand for something else."""
        self._refresh((), self._watched)

    def close(self) -> None:
        """Let go of everything that was looked up."""
        self._all_stale = False
        self._stale.clear()
        self._next.clear()
        self._untold.clear()
        for snapshot in self._snapshots.values():
            snapshot.renew(self._caller())
        self._snapshots.clear()

    # --- looking again --------------------------------------------------------------------------

    def _refresh(self, names: Collection[str], many: Iterable[str] = ()) -> None:
        """Look at these names again, in :meth:`look`: at ``names`` and then at ``many``.

        ``many`` may be all names that clients chose: nothing is done with each of them here.
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
        """Whether there is something to look at."""
        return bool(self._untold or self._next or self._stale or self._all_stale)

    def look(self, most: int) -> int:
        """Look at some names and tell some conversations, at most ``most``; how many that were."""
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
