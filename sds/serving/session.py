"""The session of one caller: its open streams, and what they watch.

Owns what is common to the streams of one caller. Invariants: the names that its streams watch stay
within the budgets of who owns their connections; a change of policy reaches each of its connections
in the right order (:mod:`sds.serving.order`); when the last stream ends, the session lets go of
every secret that it had looked up.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sds.identity import Identity
from sds.serving.authorization import EXTENSION_TYPE
from sds.serving.encode import SECRET_TYPE
from sds.serving.extensions import widens_only
from sds.serving.order import Order
from sds.serving.watches import Watches
from sds.slim import SlimDict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sds.errors import SdsError
    from sds.secrets.store import ResourceKey, SecretStore
    from sds.serving.catalog import Catalog
    from sds.serving.conversation import Conversation
    from sds.serving.extensions import Authorizations, ExtensionCatalog
    from sds.serving.looks import Looks
    from sds.serving.names import NameBudget
    from sds.serving.snapshot import Snapshot
    from sds.serving.stream import Stream
    from sds.workload.entitlement import Caller, Entitlement


class CallerSession:
    """The streams of one caller; see the module.

    Args:
        entitlement: who the caller is, over time.
        catalog: where secrets are found.
        extensions: where filter configurations are found.
        budget: what names may cost.
        looks: says when names are looked at again.
    """

    def __init__(
        self,
        entitlement: Entitlement,
        catalog: Catalog,
        extensions: ExtensionCatalog,
        budget: NameBudget,
        looks: Looks,
    ) -> None:
        self.entitlement = entitlement
        self.store: SecretStore = catalog.store
        self.streams: SlimDict[Stream, None] = SlimDict()
        self._extensions = extensions
        self._budget = budget
        self._labels: dict[str, Any] = {"workload": entitlement.current.name}
        self._order = Order(_deliver)
        caller = functools.partial(getattr, entitlement, "current")
        self._watches = {
            SECRET_TYPE: Watches(catalog, caller, self._order.touch),
            EXTENSION_TYPE: Watches(extensions, caller, self._order.touch),
        }
        self._authorizations: Authorizations = extensions.authorizations(self.caller)
        self._looks = looks
        self._first_type = SECRET_TYPE
        """Whose names are looked at before those of other types."""
        self._stop_listening = entitlement.listen(self._on_recognition)

    @property
    def caller(self) -> Caller:
        """Who the caller is now."""
        return self.entitlement.current

    def labels(self) -> dict[str, Any]:
        """What a log line says about the caller."""
        return self._labels

    def watched(self) -> int:
        """How many names are watched, of all types."""
        return sum(map(len, self._watches.values()))

    def snapshot(self, type_url: str, *, strong: bool) -> Snapshot:
        """What the caller may have of a type; one snapshot for all streams."""
        return self._watches[type_url].snapshot(strong=strong)

    def conversations(self, type_url: str) -> Iterator[Conversation]:
        """Those about one type, on all streams."""
        for stream in self.streams:
            found = stream.conversations.get(type_url)
            if found is not None:
                yield found

    # --- who watches what -----------------------------------------------------------------------

    def watch(self, conversation: Conversation, name: str) -> None:
        """The client wants to hear of this name.

        Raises:
            LimitError: the names of this workload cost too much.
        """
        size = self._watches[conversation.type_url].watch(conversation, name)
        self.take_names(conversation, size)

    def unwatch(self, conversation: Conversation, names: Iterable[str]) -> None:
        """The client does not want to hear of these names any more."""
        size = self._watches[conversation.type_url].unwatch(conversation, names)
        self.give_back_names(conversation, size)

    def take_names(self, conversation: Conversation, size: int) -> None:
        """The names of a conversation take so many bytes more.

        Raises:
            LimitError: the names of its owner cost too much.
        """
        conversation.name_bytes += size
        self._budget.take(conversation.stream.owner, size)

    def give_back_names(self, conversation: Conversation, size: int) -> None:
        """The names of a conversation take so many bytes less."""
        conversation.name_bytes -= size
        self._budget.give_back(conversation.stream.owner, size)

    def watch_everything(self, conversation: Conversation, *, on: bool) -> None:
        """The client wants to hear of all names, or of those only that it watches."""
        self._watches[conversation.type_url].watch_everything(conversation, on=on)

    def answered(self, conversation: Conversation) -> None:
        """The client ACKed or NACKed."""
        self._order.answered(conversation)

    def gone(self, conversation: Conversation) -> None:
        """The conversation is over, and watches nothing any more."""
        self._order.gone(conversation)
        # What a limit refused was counted, and may be in no list.
        self._budget.give_back(conversation.stream.owner, conversation.name_bytes)
        conversation.name_bytes = 0

    def leave(self, stream: Stream) -> None:
        """The stream is over, and so are its conversations."""
        self.streams.take(stream)

    # --- what changed ---------------------------------------------------------------------------

    def changed(self, keys: Collection[ResourceKey]) -> None:
        """These stored things changed: look at what they are in, push what differs."""
        bundles = not all(isinstance(key, Identity) for key in keys)
        self._watches[SECRET_TYPE].changed(keys, with_policy=bundles)
        self._expect_look()

    def reloaded(self) -> None:
        """Ticket keys or generic secrets changed."""
        self._watches[SECRET_TYPE].reloaded()
        self._expect_look()

    def refresh(self) -> None:
        """Policy or recognition changed: any name may stand for something else."""
        before = self._authorizations
        self._authorizations = self._extensions.authorizations(self.caller)
        widens = widens_only(before, self._authorizations)
        self._first_type = SECRET_TYPE if widens else EXTENSION_TYPE
        self._order.begin(self._first_type)
        for watches in self._watches.values():
            watches.refresh()
        self._expect_look()

    def _expect_look(self) -> None:
        if self.has_stale:
            self._looks.add(self)

    @property
    def has_stale(self) -> bool:
        return any(watches.has_stale for watches in self._watches.values())

    def look(self, most: int) -> int:
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
        """The last stream is over: let go of every secret that was looked up."""
        self._stop_listening()
        self._stop_listening = _already_stopped  # the other one refers to us
        self._looks.remove(self)
        self._order.release_all()
        for watches in self._watches.values():
            watches.close()
        self._watches.clear()

    def _on_recognition(self) -> None:
        if self.entitlement.ended is not None:
            self.end(self.entitlement.ended)
        else:
            self.refresh()


def _deliver(conversation: Conversation, names: tuple[str, ...]) -> None:
    """Names changed for a conversation; none: any may have."""
    if names:
        conversation.subscription.touch(names)
    else:
        conversation.subscription.touch_all()
    conversation.stream.kick()


def _already_stopped() -> None:
    """Do nothing."""
