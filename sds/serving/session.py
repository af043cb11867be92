"""The session of one caller: its open streams, and what they watch.

Owns what the streams of one caller have in common. Invariants: the names that its streams watch
stay within the budgets of the connections' owners; a change of policy reaches each of its
connections in the right order (:mod:`sds.serving.policy_change_order`); if a change cannot be taken
in, the streams end, so that no client goes on with what was allowed before, and no other session
waits for the change; when the last stream ends, the session lets go of every secret that it looked
up.
"""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any

from sds.errors import SdsError
from sds.faults import report
from sds.identity import Identity
from sds.serving.encode import SECRET_TYPE
from sds.serving.extension_catalog import Widening
from sds.serving.policy_change_order import PolicyChangeOrder
from sds.serving.rbac import EXTENSION_TYPE
from sds.serving.watches import Watches
from sds.shrinking_dict import ShrinkingDict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sds.secrets.store import ResourceKey, SecretStore
    from sds.serving.conversation import Conversation
    from sds.serving.extension_catalog import Authorizations, ExtensionCatalog
    from sds.serving.name_budget import NameBudget
    from sds.serving.secret_catalog import Catalog
    from sds.serving.snapshot import Snapshot
    from sds.serving.stale_names import NameLookUps
    from sds.serving.stream import Stream
    from sds.workload.entitlement import Caller, Entitlement


class CallerSession:
    """The open streams of one caller.

    Args:
        entitlement: tells who the caller is, over time.
        catalog: finds secrets.
        extensions: finds filter configurations.
        budget: bounds the memory of names.
        looks: says when names are looked at again.
    """

    def __init__(
        self,
        entitlement: Entitlement,
        catalog: Catalog,
        extensions: ExtensionCatalog,
        budget: NameBudget,
        looks: NameLookUps,
    ) -> None:
        self.entitlement = entitlement
        self.store: SecretStore = catalog.store
        self.streams: ShrinkingDict[Stream, None] = ShrinkingDict()
        self._extensions = extensions
        self._budget = budget
        self._labels: dict[str, Any] = {"workload": entitlement.current.name}
        self._order = PolicyChangeOrder(_deliver)
        caller = functools.partial(getattr, entitlement, "current")
        self._watches = {
            SECRET_TYPE: Watches(catalog, caller, self._order.touch),
            EXTENSION_TYPE: Watches(extensions, caller, self._order.touch),
        }
        self._authorizations: Authorizations = extensions.authorizations(self.caller)
        self._looks = looks
        self._first_type = SECRET_TYPE
        """The type whose names are looked up before those of other types."""
        self._stop_listening = entitlement.listen(self._on_recognition)

    @property
    def caller(self) -> Caller:
        """Return who the caller is now."""
        return self.entitlement.current

    def labels(self) -> dict[str, Any]:
        """Return what a log line says about the caller."""
        return self._labels

    def watched(self) -> int:
        """Return how many names of all types are watched."""
        return sum(map(len, self._watches.values()))

    def snapshot(self, type_url: str, *, strong: bool) -> Snapshot:
        """Return what the caller may have of a type; all streams share one snapshot."""
        return self._watches[type_url].snapshot(strong=strong)

    def conversations(self, type_url: str) -> Iterator[Conversation]:
        """Yield the conversations about one type, on all streams."""
        for stream in self.streams:
            found = stream.conversations.get(type_url)
            if found is not None:
                yield found

    # --- who watches what -----------------------------------------------------------------------

    def watch(self, conversation: Conversation, name: str) -> None:
        """Watch this name for a conversation.

        Raises:
            LimitError: the names of its owner take too much memory.
        """
        size = self._watches[conversation.type_url].watch(conversation, name)
        self.take_names(conversation, size)

    def unwatch(self, conversation: Conversation, names: Iterable[str]) -> None:
        """Stop watching these names for a conversation."""
        size = self._watches[conversation.type_url].unwatch(conversation, names)
        self.give_back_names(conversation, size)

    def take_names(self, conversation: Conversation, size: int) -> None:
        """Count bytes that the names of a conversation take in addition.

        Raises:
            LimitError: the names of the owner take too much memory.
        """
        conversation.name_bytes += size
        self._budget.take(conversation.stream.owner, size)

    def give_back_names(self, conversation: Conversation, size: int) -> None:
        """Give back bytes that the names of a conversation no longer take."""
        conversation.name_bytes -= size
        self._budget.give_back(conversation.stream.owner, size)

    def watch_everything(self, conversation: Conversation, *, on: bool) -> None:
        """Watch all names for a conversation, or again only those that it asked for."""
        self._watches[conversation.type_url].watch_everything(conversation, on=on)

    def answered(self, conversation: Conversation) -> None:
        """Note an ACK or a NACK of the client."""
        self._order.answered(conversation)

    def gone(self, conversation: Conversation) -> None:
        """Forget a conversation that is over."""
        self._order.gone(conversation)
        # Names that a limit refused were counted, but may be in no list.
        self._budget.give_back(conversation.stream.owner, conversation.name_bytes)
        conversation.name_bytes = 0

    def leave(self, stream: Stream) -> None:
        """Forget a stream that is over, and its conversations."""
        self.streams.take(stream)

    # --- what changed ---------------------------------------------------------------------------

    def changed(self, keys: Collection[ResourceKey]) -> None:
        """Look up again what contains these changed stored things, and push what differs."""
        bundles = not all(isinstance(key, Identity) for key in keys)
        with self._whole():
            self._watches[SECRET_TYPE].changed(keys, with_policy=bundles)
            self._expect_look()

    def reloaded(self) -> None:
        """Note that ticket keys or generic secrets changed."""
        with self._whole():
            self._watches[SECRET_TYPE].reloaded()
            self._expect_look()

    def refresh(self, widening: Widening) -> None:
        """Look up every name again, because policy changed; ``widening`` compares the two."""
        with self._whole():
            self._refresh(widening)

    def _refresh(self, widening: Widening) -> None:
        before = self._authorizations
        self._authorizations = self._extensions.authorizations(self.caller)
        widens = widening.only(before, self._authorizations)
        self._first_type = SECRET_TYPE if widens else EXTENSION_TYPE
        self._order.begin(self._first_type)
        for watches in self._watches.values():
            watches.refresh()
        self._expect_look()

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Take in a change; if that fails, end the streams, which ask for everything again."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  the boundary between one session and the others
            report("stream", error, **self.labels())
            self.end(
                SdsError("a change was not taken in; the server's log says why", reason="internal")
            )

    def _expect_look(self) -> None:
        if self.has_stale:
            self._looks.add(self)

    @property
    def has_stale(self) -> bool:
        """Say whether there is a name to look up."""
        return any(watches.has_stale for watches in self._watches.values())

    def look(self, most: int) -> int:
        """Look up at most ``most`` names, and return how many that were."""
        first = self._watches[self._first_type]
        done = first.look(most)
        for watches in self._watches.values():
            if watches is not first:
                done += watches.look(most - done)
        return done

    # --- the end --------------------------------------------------------------------------------

    def end(self, error: SdsError) -> None:
        """End all streams."""
        for stream in list(self.streams):
            stream.end(error)

    def close(self) -> None:
        """Let go of every secret that was looked up, because the last stream is over."""
        self._stop_listening()
        self._stop_listening = _already_stopped  # the old function refers to this session
        self._looks.remove(self)
        self._order.release_all()
        for watches in self._watches.values():
            watches.close()
        self._watches.clear()

    def _on_recognition(self) -> None:
        if self.entitlement.ended is not None:
            self.end(self.entitlement.ended)
        else:
            self.refresh(Widening())


def _deliver(conversation: Conversation, names: tuple[str, ...]) -> None:
    """Tell a conversation which names changed; without names, any may have.

    One that cannot be told ends, and those that wait behind it are told.
    """
    try:
        if names:
            conversation.subscription.touch(names)
        else:
            conversation.subscription.touch_all()
        conversation.stream.kick()
    except Exception as error:  # noqa: BLE001  the boundary between one conversation and the others
        report("stream", error)
        conversation.stream.end(
            SdsError("a change was not taken in; the server's log says why", reason="internal")
        )


def _already_stopped() -> None:
    """Do nothing."""
