"""Tables that give their memory back."""

from __future__ import annotations

import sys

from sds.shrinking_dict import ShrinkingDict
from tests.support.cost import assert_linear


def filled(count: int) -> ShrinkingDict[int, None]:
    made: ShrinkingDict[int, None] = ShrinkingDict()
    for number in range(count):
        made[number] = None
    return made


def test_a_table_that_is_nearly_empty_is_small() -> None:
    plain = dict.fromkeys(range(2_000))
    table = filled(2_000)
    for number in range(1_990):
        del plain[number]
        assert table.take(number) is None
    assert list(table) == list(plain) == list(range(1_990, 2_000))
    assert sys.getsizeof(plain) > 50_000
    assert sys.getsizeof(table) < 5_000
    for number in range(2_000, 4_000):  # and it grows and shrinks again
        table[number] = None
    for number in range(1_995, 4_000):
        del table[number]
    assert list(table) == list(range(1_990, 1_995))
    assert sys.getsizeof(table) < 5_000


def test_removing_costs_the_same_however_many_there_are() -> None:
    def work(count: int):  # type: ignore[no-untyped-def]
        table = filled(count)
        return lambda: [table.take(number) for number in range(count)]

    assert_linear(work, 2_000)


def test_what_is_not_there_is_not_taken() -> None:
    table = filled(3)
    assert table.take(7) is None
    assert len(table) == 3
