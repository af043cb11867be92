"""Who is told of a change."""

from __future__ import annotations

from sds import faults
from sds.listeners import Listeners


def test_they_are_told_in_order_and_a_fault_of_one_keeps_nothing_from_others() -> None:
    listeners: Listeners[[]] = Listeners()
    told = list[str]()
    before = faults.counts()["listener"]

    def broken() -> None:
        told.append("broken")
        raise ZeroDivisionError("on purpose")

    listeners.add(lambda: told.append("first"))
    listeners.add(broken)
    listeners.add(lambda: told.append("last"))
    listeners.tell()
    assert told == ["first", "broken", "last"]
    assert faults.counts()["listener"] == before + 1


def test_the_same_function_may_ask_twice_and_each_stops_alone_and_once() -> None:
    listeners: Listeners[[]] = Listeners()
    told = list[int]()

    def one() -> None:
        told.append(1)

    stop, other = listeners.add(one), listeners.add(one)
    stop()
    stop()
    listeners.tell()
    assert told == [1]
    other()
    listeners.tell()
    assert told == [1]


def test_who_is_told_may_stop_and_ask_others_to_be_told() -> None:
    listeners: Listeners[[]] = Listeners()
    told = list[str]()

    def once() -> None:
        told.append("once")
        stop()
        listeners.add(lambda: told.append("later"))

    stop = listeners.add(once)
    listeners.tell()
    listeners.tell()
    assert told == ["once", "later"]
