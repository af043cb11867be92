"""Who of a small listener's connections is served, who waits, and who makes room."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from sds.operations.listener_places import MAX_CONNECTIONS, MAX_WAITING, ConnectionPlaces, Patience

if TYPE_CHECKING:
    from collections.abc import Callable

PATIENCE = Patience(answers=2, grace=1.0)


@dataclass(eq=False)
class Timer:
    """What :meth:`PlayedLoop.call_later` gives."""

    at: float
    what: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class PlayedLoop:
    """Time that tests move."""

    now: float = 0.0
    due: list[Timer] = field(default_factory=list)

    def call_later(self, seconds: float, what: Callable[[], object]) -> Timer:
        timer = Timer(self.now + seconds, what)
        self.due.append(timer)
        return timer

    def pass_(self, seconds: float) -> None:
        """Turns of the loop at the times that timers ask for."""
        end = self.now + seconds
        while ready := [timer for timer in self.due if timer.at <= end]:
            self.now = max(self.now, min(timer.at for timer in ready))
            self.turn()
        self.now = end

    def stand_still(self, seconds: float) -> None:
        """One turn that takes so long."""
        self.now += seconds
        self.turn()

    def turn(self) -> None:
        ready = [timer for timer in self.due if timer.at <= self.now]
        self.due = [timer for timer in self.due if timer.at > self.now]
        for timer in ready:
            if not timer.cancelled:
                timer.what()


@dataclass(eq=False)
class Caller:
    """A connection."""

    places: ConnectionPlaces
    owner: str = ""
    working: bool = False
    reads: bool = False
    ended: str = ""

    def wait(self) -> None:
        self.reads = False

    def admitted(self) -> None:
        self.reads = True

    def close(self) -> None:
        self.ended = "closed"
        self.places.closed(self)

    def abort(self) -> None:
        self.ended = "aborted"
        self.places.closed(self)

    def ask(self) -> None:
        self.working = True
        self.places.active(self)

    def answered(self, *, more: bool = False) -> None:
        self.working = more
        self.places.answered(self)


def crowd(places: ConnectionPlaces, many: int, *, owner: str = "") -> list[Caller]:
    """So many connections at once."""
    callers = [Caller(places, owner) for _ in range(many)]
    for one in callers:
        places.opened(one)
    return callers


def made(descriptors: int = 1 << 20) -> tuple[ConnectionPlaces, PlayedLoop]:
    loop = PlayedLoop()
    return ConnectionPlaces(cast("Any", loop), PATIENCE, descriptors=descriptors), loop


def test_a_crowd_that_asks_at_once_is_answered_and_nobody_is_ended() -> None:
    places, loop = made()
    callers = crowd(places, 10 * MAX_CONNECTIONS)
    answers = 0
    while asking := [one for one in callers if one.reads and not one.ended]:
        assert len(asking) <= MAX_CONNECTIONS
        for one in asking:
            one.ask()
        loop.pass_(5.0)  # longer than anybody's grace: who waits for us is not silent
        for one in asking:
            assert not one.ended
            one.answered()
            answers += 1
            if not one.ended:
                one.close()  # it has what it wanted
    assert answers == len(callers)
    assert {one.ended for one in callers} == {"closed"}


def test_who_is_silent_makes_room_the_longest_first() -> None:
    places, loop = made()
    silent = crowd(places, MAX_CONNECTIONS)
    loop.pass_(PATIENCE.grace)
    silent[0].ask()
    (newcomer,) = crowd(places, 1)
    assert newcomer.reads
    assert [one.ended for one in silent[:3]] == ["", "aborted", ""]


def test_who_is_new_is_not_silent_yet_and_makes_room_a_moment_later() -> None:
    places, loop = made()
    silent = crowd(places, MAX_CONNECTIONS)
    (newcomer,) = crowd(places, 1)
    assert (newcomer.reads, [one for one in silent if one.ended]) == (False, [])
    loop.pass_(PATIENCE.grace)
    assert (newcomer.reads, [one for one in silent if one.ended]) == (True, silent[:1])


def test_who_had_no_turn_to_speak_in_is_not_silent() -> None:
    """On a busy machine a turn of the loop takes longer than anybody's grace."""
    places, loop = made()
    crowd(places, MAX_CONNECTIONS)
    (newcomer,) = crowd(places, 1)
    for _ in range(3):
        loop.stand_still(10 * PATIENCE.grace)
        (another,) = crowd(places, 1)
        assert not newcomer.reads
        assert not another.reads
    loop.pass_(PATIENCE.grace)
    assert newcomer.reads


def test_who_asks_without_end_makes_room_after_its_answers() -> None:
    places, _ = made()
    greedy = crowd(places, MAX_CONNECTIONS)
    for one in greedy:
        one.ask()
    (probe,) = crowd(places, 1)
    for answers in range(PATIENCE.answers):
        assert (probe.reads, greedy[0].ended) == (False, ""), answers
        greedy[0].ask()
        greedy[0].answered(more=True)
    assert (probe.reads, greedy[0].ended) == (True, "closed")


def test_so_many_wait_and_no_more() -> None:
    places, loop = made()
    callers = crowd(places, MAX_CONNECTIONS + MAX_WAITING + 2)
    assert [one.ended for one in callers[-3:]] == ["", "aborted", "aborted"]
    callers[MAX_CONNECTIONS].abort()  # one of those who wait goes by itself
    places.close()
    assert all(one.ended for one in callers)
    loop.pass_(10.0)


def test_who_waits_leaves_descriptors_for_others() -> None:
    places, _ = made(descriptors=320)
    callers = crowd(places, MAX_CONNECTIONS + 12)
    assert [bool(one.ended) for one in callers[-3:]] == [False, True, True]


def test_no_address_keeps_those_of_another_from_waiting_or_from_being_served() -> None:
    """A pod that opens connections without end would make the kubelet's probes fail."""
    places, loop = made()
    flood = crowd(places, MAX_CONNECTIONS + MAX_WAITING, owner="192.0.2.1")
    probes = crowd(places, 2, owner="192.0.2.2")
    assert [one.ended for one in probes] == ["", ""]
    assert [one.ended for one in flood[-3:]] == ["", "aborted", "aborted"]
    more = crowd(places, 50, owner="192.0.2.1")
    assert {one.ended for one in more} == {"aborted"}
    loop.pass_(PATIENCE.grace)
    assert [one.reads for one in probes] == [True, True]
    places.close()
