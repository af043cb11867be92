"""The session of one caller: its open streams, and which of them watch which name.

Owns the way from a change to the streams that it concerns. Invariants: a change looks only at names
whose content it can have changed, and at most :data:`SLICE` of them in one turn of the event loop;
session ticket keys are looked at before everything else, so that a changed context never meets
tickets from before; when the last stream ends, the session lets go of every secret that it had
looked up.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Final

from sds.faults import guarded
from sds.identity import Identity
from sds.serving.encode import SECRET_TYPE
from sds.serving.names import name_cost
from sds.serving.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sds.errors import SdsError
    from sds.secrets.store import ResourceKey, SecretStore
    from sds.serving.catalog import Catalog
    from sds.serving.conversation import Conversation
    from sds.serving.names import NameBudget
    from sds.serving.stream import Stream
    from sds.workload.entitlement import Caller, Entitlement

SLICE: Final = 200
"""Names that one turn of the event loop looks at: 1 to 3 ms."""


class _Watched:
    """One name: the version that clients were told of last, and who watches it."""

    __slots__ = ("conversations", "version")

    def __init__(self, version: str | None) -> None:
        self.version = version
        self.conversations: dict[Conversation, None] = {}


class CallerSession:
    """The streams of one caller; see the module.

    Args:
        entitlement: who the caller is, over time.
        catalog: where secrets are found.
        budget: what names may cost.
    """

    def __init__(self, entitlement: Entitlement, catalog: Catalog, budget: NameBudget) -> None:
        self.entitlement = entitlement
        self.store: SecretStore = catalog.store
        self.streams: dict[Stream, None] = {}
        self._catalog = catalog
        self._budget = budget
        self._owner = entitlement.current.name
        self._snapshots: dict[bool, Snapshot] = {}
        self._watched: dict[str, _Watched] = {}
        self._by_policy: dict[str, None] = {}
        self._watching_everything: dict[Conversation, None] = {}
        self._stale: dict[str, None] = {}
        self._next_slice: asyncio.Handle | None = None
        self._labels: dict[str, Any] = {"workload": self._owner}
        self._stop_listening = entitlement.listen(self._on_recognition)

    @property
    def caller(self) -> Caller:
        """Who the caller is now."""
        return self.entitlement.current

    def labels(self) -> dict[str, Any]:
        """What a log line says about the caller."""
        return self._labels

    def snapshot(self, type_url: str, *, strong: bool) -> Snapshot:
        """What the caller may have of a type; one snapshot for all streams."""
        del type_url
        found = self._snapshots.get(strong)
        if found is None:
            found = self._snapshots[strong] = Snapshot(self._catalog, self.caller, strong=strong)
        return found

    # --- who watches what -----------------------------------------------------------------------

    def watch(self, conversation: Conversation, names: Iterable[str]) -> None:
        """The client wants to hear of these names.

        Raises:
            LimitError: the names of this workload cost too much.
        """
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
        conversation.name_bytes += size
        self._budget.take(self._owner, size)

    def unwatch(self, conversation: Conversation, names: Iterable[str]) -> None:
        """The client does not want to hear of these names any more."""
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
        conversation.name_bytes -= size
        self._budget.give_back(self._owner, size)

    def watch_everything(self, conversation: Conversation, *, on: bool) -> None:
        """The client wants to hear of all names, or of those only that it watches."""
        if on:
            self._watching_everything[conversation] = None
        else:
            self._watching_everything.pop(conversation, None)

    def leave(self, stream: Stream) -> None:
        """The stream is over."""
        self.streams.pop(stream, None)
        for conversation in stream.conversations.values():
            self._watching_everything.pop(conversation, None)
            self.unwatch(conversation, conversation.subscription.names())
            # What a limit refused was counted, and may be in no list.
            self._budget.give_back(self._owner, conversation.name_bytes)
            conversation.name_bytes = 0

    # --- what changed ---------------------------------------------------------------------------

    def changed(self, keys: Collection[ResourceKey]) -> None:
        """These stored things changed: look at what they are in, push what differs."""
        names = self._catalog.names_of(self.caller, keys)
        if not all(isinstance(key, Identity) for key in keys):
            names += self._by_policy
        self._refresh(names)

    def reloaded(self) -> None:
        """Ticket keys or generic secrets changed."""
        self._refresh(self._catalog.reloaded_names(self.caller))

    def refresh(self) -> None:
        """Policy or recognition changed: any name may stand for something else."""
        self._refresh(self._watched)

    def _refresh(self, names: Iterable[str]) -> None:
        for snapshot in self._snapshots.values():
            snapshot.renew(self.caller)
        wanted = [name for name in names if name in self._watched]
        tickets = self._catalog.aliases.session_tickets
        wanted.sort(key=lambda name: name not in tickets)
        self._stale.update(dict.fromkeys(wanted))
        if self._next_slice is None:
            self._look()
        for conversation in self._watching_everything:
            conversation.subscription.touch_all()
            conversation.stream.kick()

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
                conversation.subscription.touch((name,))
                conversation.stream.kick()

    def _version(self, name: str) -> str | None:
        resource = self.snapshot(SECRET_TYPE, strong=False).find(name)
        return resource.receipt.version if resource is not None else None

    # --- the end --------------------------------------------------------------------------------

    def end(self, error: SdsError) -> None:
        """End all streams."""
        for stream in list(self.streams):
            stream.end(error)

    def close(self) -> None:
        """The last stream is over: let go of every secret that was looked up."""
        self._stop_listening()
        self._stop_listening = _already_stopped  # the other one refers to us
        if self._next_slice is not None:
            self._next_slice.cancel()
            self._next_slice = None
        for snapshot in self._snapshots.values():
            snapshot.renew(self.caller)
        self._snapshots.clear()

    def _on_recognition(self) -> None:
        if self.entitlement.ended is not None:
            self.end(self.entitlement.ended)
        else:
            self.refresh()


def _already_stopped() -> None:
    """Do nothing."""
