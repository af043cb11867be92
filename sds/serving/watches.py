"""Which conversations of one caller watch which name of one type.

Owns the way from a change to the conversations that it concerns. Invariants: a change looks only at
names whose content it can have changed, and at most :data:`SLICE` of them in one turn of the event
loop; names that must go before others (session ticket keys) are looked at first, so that a changed
context never meets tickets from before.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final, Protocol

from sds.faults import guarded
from sds.serving.names import name_cost
from sds.serving.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sds.secrets.store import ResourceKey
    from sds.serving.conversation import Conversation
    from sds.serving.encode import Resource
    from sds.workload.entitlement import Caller

SLICE: Final = 200
"""Names that one turn of the event loop looks at: 1 to 3 ms."""


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
        self._touch = touch
        self._snapshots: dict[bool, Snapshot] = {}
        self._watched: dict[str, _Watched] = {}
        self._by_policy: dict[str, None] = {}
        self._watching_everything: dict[Conversation, None] = {}
        self._stale: dict[str, None] = {}
        self._next_slice: asyncio.Handle | None = None

    def __len__(self) -> int:
        """How many names are watched."""
        return len(self._watched)

    def snapshot(self, *, strong: bool) -> Snapshot:
        """What the caller may have; one snapshot for all streams."""
        found = self._snapshots.get(strong)
        if found is None:
            found = self._snapshots[strong] = Snapshot(self._catalog, self._caller(), strong=strong)
        return found

    def watch(self, conversation: Conversation, names: Iterable[str]) -> int:
        """The client wants to hear of these names; returns the bytes of those that are new."""
        size = 0
        for name in names:
            watched = self._watched.get(name)
            if watched is None:
                watched = self._watched[name] = _Watched(self._version(name))
                if self._catalog.is_by_policy(name):
                    self._by_policy[name] = None
            if conversation not in watched.conversations:
                watched.conversations[conversation] = None
                size += name_cost(name)
        return size

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
                self._by_policy.pop(name, None)
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
        if with_policy:
            names += self._by_policy
        self._refresh(names)

    def reloaded(self) -> None:
        """What comes from files, or is made here, changed."""
        self._refresh(self._catalog.reloaded_names(self._caller()))

    def refresh(self) -> None:
        """Any name may stand for something else."""
        self._refresh(self._watched)

    def close(self) -> None:
        """Let go of everything that was looked up."""
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None
        for snapshot in self._snapshots.values():
            snapshot.renew(self._caller())
        self._snapshots.clear()

    def _refresh(self, names: Iterable[str]) -> None:
        for snapshot in self._snapshots.values():
            snapshot.renew(self._caller())
        wanted = [name for name in names if name in self._watched]
        first = self._catalog.first_names()
        wanted.sort(key=lambda name: name not in first)
        self._stale.update(dict.fromkeys(wanted))
        if self._next_slice is None:
            self._look()
        for conversation in list(self._watching_everything):
            self._touch(conversation, ())

    def _look(self) -> None:
        """Look at some of the names, and go on in the next turn of the loop."""
        self._next_slice = None
        for name in tuple(itertools.islice(self._stale, SLICE)):
            del self._stale[name]
            guarded("listener", self._compare)(name)  # one name's fault holds up no other
        if self._stale:
            self._next_slice = asyncio.get_running_loop().call_soon(self._look)

    def _compare(self, name: str) -> None:
        watched = self._watched.get(name)
        if watched is None:
            return
        version = self._version(name)
        if version != watched.version:
            watched.version = version
            for conversation in watched.conversations:
                self._touch(conversation, (name,))

    def _version(self, name: str) -> str | None:
        resource = self.snapshot(strong=False).find(name)
        return resource.receipt.version if resource is not None else None
