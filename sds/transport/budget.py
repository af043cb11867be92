"""The budget of each owner of connections: one for all sockets, and it survives reconnecting.

An owner is a pod, or a user outside pods; the code that accepts says which. Owns what each uses
now (connections, streams, bytes) and what it used lately (processor time, refused calls, log
lines). Invariants:

* all owners that nobody has recognised share one account, that of strangers;
* what was used lately is forgotten only when it no longer counts, so an owner gains nothing by
  going away, nor by using many names;
* an owner that exceeds its budget gets a :class:`~sds.errors.LimitError` that names the limit; this
  is counted by owner and logged once in :data:`SAID_SECONDS`.

Nothing here reads a clock: ``now`` is seconds of a monotonic clock.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Final, NoReturn

from sds.errors import LimitError
from sds.transport.budget_sizes import (
    ENVOY_BYTES,
    FEW_BYTES,
    FEW_STREAMS,
    RECOGNISED,
    STRANGERS,
    Total,
    few_of,
    strangers_part,
)
from sds.transport.rate import Allowance

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sds.transport.budget_sizes import Share

_LOG: Final = logging.getLogger("sds.transport")
SAID_SECONDS: Final = 10.0
"""Seconds between two log lines about the same owner and the same limit."""
CONNECTION_BYTES: Final = 8 * 1024
"""Bytes of memory of a connection with nothing on it."""
STREAM_BYTES: Final = 6 * 1024
"""Bytes of memory of an open stream, its call and what its handler keeps."""
_MIB: Final = 1024 * 1024
_STEP_GUESS_SECONDS: Final = 500e-6
_STEP_WEIGHT: Final = 1 / 32
_OTHERS: Final = "others"
_LOOKED_AT: Final = 16
"""How many owners are looked at to find one that can be forgotten."""


class Account:
    """What an owner uses now and used lately; all strangers share one account."""

    __slots__ = (
        "connections",
        "held",
        "lines",
        "processor",
        "refusals",
        "said",
        "share",
        "step_seconds",
        "streams",
    )

    def __init__(self, share: Share) -> None:
        self.share = share
        self.connections = self.streams = self.held = 0
        self.processor = Allowance(share.processor, share.processor_burst_seconds)
        self.refusals = Allowance(share.refusals_per_second, share.refusal_burst)
        self.lines = Allowance(share.lines_per_second, share.line_burst)
        self.step_seconds = _STEP_GUESS_SECONDS
        """The expected time of a handler's step; it rises at once and falls slowly."""
        self.said: dict[str, tuple[float, int]] = {}
        """For each limit: when the log last mentioned it, and how often it was exceeded since."""

    def add(self, *, connections: int = 0, streams: int = 0, held: int = 0) -> None:
        """Add to what is in use now."""
        self.connections += connections
        self.streams += streams
        self.held += held

    def stepped(self, seconds: float, now: float) -> None:
        """Count the processor time of a handler's step."""
        self.processor.use(seconds, now)
        less = self.step_seconds + _STEP_WEIGHT * (seconds - self.step_seconds)
        self.step_seconds = max(seconds, less)

    def is_forgettable(self, now: float) -> bool:
        """Say whether a new account would not differ."""
        return not (self.connections or self.held) and all(
            one.is_full(now) for one in (self.processor, self.refusals, self.lines)
        )


class Owner:
    """One pod, or one user outside pods; :meth:`Budgets.owner` gives it.

    Attributes:
        name: for people, such as ``pod 1234…`` or ``uid 1000``.
        account: the account that pays: that of strangers until :meth:`recognise`.
        suppressed: how many log lines were left out since the last one.
    """

    __slots__ = ("_budgets", "_own", "_parties", "account", "name", "suppressed")

    def __init__(self, name: str, budgets: Budgets) -> None:
        """Make an owner that nobody has recognised yet."""
        self.name = name
        self.suppressed = 0
        self._budgets = budgets
        self._own = Account(budgets.share)
        self._parties: dict[str, dict[Callable[[], None], None]] = {}
        """The connections of each process on each socket."""
        self.account = budgets.strangers

    @property
    def kind(self) -> str:
        """The first word of its name."""
        return self.name.partition(" ")[0]

    @property
    def recognised(self) -> bool:
        """Say whether the owner has an account of its own."""
        return self.account is self._own

    @property
    def connections(self) -> int:
        """Open ones."""
        return self._own.connections

    @property
    def streams(self) -> int:
        """Open ones."""
        return self._own.streams

    @property
    def held(self) -> int:
        """Return the bytes of memory that the owner uses."""
        return self._own.held

    def recognise(self) -> None:
        """Give the owner an account of its own from now on. A second call does nothing.

        If the table of owners has no room, the owner stays a stranger.
        """
        if self.recognised or not self._budgets.remember(self):
            return
        own = self._own
        self.account.add(connections=-own.connections, streams=-own.streams, held=-own.held)
        self.account = own
        for connections in self._parties.values():
            for give_way in connections:
                self._budgets.no_stranger(self, give_way)

    # --- what it uses now -----------------------------------------------------------------------

    def connect(self, give_way: Callable[[], None], now: float, *, party: str = "") -> None:
        """Count a connection that begins.

        Args:
            give_way: closes the connection; called if another one needs the room more.
            now: seconds of a monotonic clock.
            party: the process and the socket. If the owner has no room, the party with the most
                connections gives way to one that has less than half as many.

        Raises:
            LimitError: there are too many.
        """
        try:
            self._budgets.admit(self, give_way, now, party)
        except LimitError:
            self._budgets.turned_away(self)
            raise
        self._parties.setdefault(party, {})[give_way] = None
        self.count_connections(1)

    def make_room(self, party: str) -> bool:
        """Close one of the greediest party's connections for a smaller party; say if it did."""
        greediest = max(self._parties.values(), key=len, default={})
        if 2 * (len(self._parties.get(party, ())) + 1) > len(greediest):
            return False
        give_way = next(reversed(greediest))
        del greediest[give_way]
        give_way()
        return True

    def disconnect(self, give_way: Callable[[], None], *, party: str = "") -> None:
        """Note that a connection has ended."""
        connections = self._parties.get(party)
        if connections is not None:
            connections.pop(give_way, None)
            if not connections:
                del self._parties[party]
        self.count_connections(-1)
        self._budgets.left(self, give_way)

    def check_stream(self, now: float) -> None:
        """Check that a stream that was just opened is within the budget.

        Raises:
            LimitError: there are too many, or too much memory is in use.
        """
        account = self.account
        most = account.share.streams
        if account.streams > most:
            self.exceeded("streams", f"more than {most} streams", now)
        if account is not self._own:
            part = strangers_part(account.streams, most, least=FEW_STREAMS)
            if self.streams > part:
                self.exceeded("streams", f"more than {part} streams", now, alone=True)
        self.check_room(0, now)

    def check_room(self, count: int, now: float) -> None:
        """Check that ``count`` more bytes are within the budget.

        Raises:
            LimitError: too many would be.
        """
        account = self.account
        most = account.share.held_bytes
        if account.held + count > most:
            self.exceeded("memory", f"more than {most // _MIB} MiB of memory", now)
        if account is not self._own:
            part = strangers_part(account.held + count, most, least=FEW_BYTES)
            if self.held + count > part:
                self.exceeded("memory", f"more than {part // 1024} KiB of memory", now, alone=True)
        budgets = self._budgets
        if budgets.all.held + count > budgets.unspared_bytes:
            budgets.check_held(self, count, now)

    def change(self, *, streams: int, held: int) -> None:
        """Count additional streams and bytes (negative: fewer); includes :data:`STREAM_BYTES`."""
        own, every, account = self._own, self._budgets.all, self.account
        own.streams += streams
        own.held += held
        every.streams += streams
        every.held += held
        if account is not own:
            account.streams += streams
            account.held += held

    def count_connections(self, count: int) -> None:
        """Count additional connections (negative: fewer) that :meth:`connect` did not admit."""
        held = CONNECTION_BYTES * count
        self._own.add(connections=count, held=held)
        self._budgets.all.add(connections=count, held=held)
        if self.account is not self._own:
            self.account.add(connections=count, held=held)

    # --- what it used lately --------------------------------------------------------------------

    def refused(self, now: float) -> None:
        """Count a refused call.

        Raises:
            LimitError: too many were refused lately.
        """
        refusals = self.account.refusals
        refusals.use(1, now)
        if refusals.rest_seconds(now):
            rate = self.account.share.refusals_per_second
            self.exceeded("refused calls", f"more than {rate:g} refused calls a second", now)

    def may_log(self, now: float) -> bool:
        """Say whether one more log line may mention this owner, and use it up."""
        lines = self.account.lines
        if lines.rest_seconds(now):
            self.suppressed += 1
            return False
        lines.use(1, now)
        return True

    def exceeded(self, limit: str, what: str, now: float, *, alone: bool = False) -> NoReturn:
        """Report that the owner exceeds its budget.

        Args:
            limit: the limit's name.
            what: what it has too much of.
            now: seconds of a monotonic clock.
            alone: whether a stranger has that much by itself.

        Raises:
            LimitError: always; it names the owner and ``what`` it has too much of.
        """
        whose = "" if self.recognised else ", with all others that no rule recognises"
        if alone:
            whose = ", and no rule recognises it"
        error = LimitError(
            f"{self.name} has {what}{whose}",
            reason="owner_budget",
            advice="use fewer; sds status and the agent's log say who uses how much",
        )
        self._budgets.tell(self, limit, error, now)
        raise error


class Budgets:
    """The budgets of all owners, and what they use together.

    Args:
        share: the share of each recognised owner.
        strangers: the share of all others together.
        total: what all use together at most.

    Attributes:
        share: as given.
        strangers: the account of owners that nobody has recognised.
        all: what all use together.
        unspared_bytes: bytes of memory that all may use together, whoever they are.
        exceeded: how often each limit was exceeded, by owner. Owners that are forgotten count as
            ``others``.
    """

    def __init__(
        self,
        share: Share = RECOGNISED,
        *,
        strangers: Share = STRANGERS,
        total: Total | None = None,
    ) -> None:
        self.share = share
        self.strangers = Account(strangers)
        self.all = Account(share)
        self.exceeded: dict[str, Counter[str]] = {}
        self._total = total if total is not None else Total()
        self.unspared_bytes = self._total.held_bytes - self._total.spared_bytes
        self._owners: OrderedDict[str, Owner] = OrderedDict()
        self._strange: dict[str, OrderedDict[Callable[[], None], None]] = {}
        """Connections of strangers by the kind of owner (pods, users), the oldest first."""

    @property
    def owners(self) -> Mapping[str, Owner]:
        """Return the owners that have connections or used something lately."""
        return self._owners

    def owner(self, name: str) -> Owner:
        """Return the owner of this name."""
        found = self._owners.get(name)
        if found is None:
            found = Owner(name, self)
            if len(self._owners) < self._total.owners:
                self._owners[name] = found
        return found

    def remember(self, owner: Owner) -> bool:
        """Say whether the table has room for an owner that was recognised."""
        if self._owners.get(owner.name) is owner:
            return True
        if owner.name in self._owners or len(self._owners) >= self._total.owners:
            return False
        self._owners[owner.name] = owner
        return True

    def admit(
        self, owner: Owner, give_way: Callable[[], None], now: float, party: str = ""
    ) -> None:
        """Count a connection of this owner that begins.

        Raises:
            LimitError: there are too many.
        """
        self._forget_some(now, but=owner)
        total = self._total
        # Shares assume a process with many descriptors; with few, no owner may take all of them.
        part = total.connections // (2 if owner.recognised else 4)
        most = min(owner.account.share.connections, part)
        if owner.recognised:
            if owner.connections >= most and not owner.make_room(party):
                owner.exceeded("connections", f"more than {most} connections", now)
        elif owner.connections >= most // 4:
            owner.exceeded("connections", f"more than {most // 4} connections", now, alone=True)
        room = total.connections - self.all.connections
        few = owner.connections < few_of(room, total.spared_connections, least=2)
        if room <= (0 if few else total.spared_connections):
            owner.exceeded("connections", f"no room among {total.connections} connections", now)
        if owner.recognised:
            return
        # Not the account's count: one that gives way is counted there until it is gone.
        while sum(map(len, self._strange.values())) >= most:
            # Of the larger kind: a user with many names takes no place of a pod that just started.
            oldest, _ = max(self._strange.values(), key=len).popitem(last=False)
            oldest()
        self._strange.setdefault(owner.kind, OrderedDict())[give_way] = None

    def no_stranger(self, owner: Owner, give_way: Callable[[], None]) -> None:
        """A rule recognised the owner of this connection, or it is over: it gives way to nobody."""
        if (there := self._strange.get(owner.kind)) is not None:
            there.pop(give_way, None)

    def left(self, owner: Owner, give_way: Callable[[], None]) -> None:
        """A connection is over."""
        self.no_stranger(owner, give_way)
        self.turned_away(owner)

    def turned_away(self, owner: Owner) -> None:
        """Remove an unrecognised owner without a connection from the table."""
        if not owner.recognised and not owner.connections and self._owners.get(owner.name) is owner:
            self._forget(owner.name)  # the strangers' account has what it used lately

    def check_held(self, owner: Owner, count: int, now: float) -> None:
        """Check that all owners together may use ``count`` bytes more.

        Raises:
            LimitError: they may not, and the owner uses more than the reserved part.
        """
        total = self._total
        room = total.held_bytes - self.all.held - count
        few = owner.held + count <= few_of(room, total.spared_bytes, least=ENVOY_BYTES)
        if room < (0 if few else total.spared_bytes):
            owner.exceeded("memory", f"no room in the {total.held_bytes // _MIB} MiB of all", now)

    def tell(self, owner: Owner, limit: str, error: LimitError, now: float) -> None:
        """Count and log that an owner exceeded a limit."""
        name = owner.name if self._owners.get(owner.name) is owner else _OTHERS
        self.exceeded.setdefault(name, Counter())[limit] += 1
        said = owner.account.said
        last, times = said.get(limit, (float("-inf"), 0))
        if now - last < SAID_SECONDS:
            said[limit] = (last, times + 1)
            return
        said[limit] = (now, 0)
        _LOG.warning(
            "an owner exceeds its budget",
            extra={"owner": owner.name, "limit": limit, "why": str(error), "times": times + 1},
        )

    def _forget_some(self, now: float, *, but: Owner) -> None:
        """Forget owners that use nothing and whose past counts no more, a few at a time.

        None while half of the places are free: who comes again soon is known, and no stranger.
        """
        if 2 * len(self._owners) < self._total.owners:
            return
        for _ in range(min(_LOOKED_AT, len(self._owners))):
            name, owner = next(iter(self._owners.items()))
            if owner is but or not owner.account.is_forgettable(now):
                self._owners.move_to_end(name)
                continue
            self._forget(name)

    def _forget(self, name: str) -> None:
        del self._owners[name]
        counted = self.exceeded.pop(name, None)
        if counted is not None:
            self.exceeded.setdefault(_OTHERS, Counter()).update(counted)
