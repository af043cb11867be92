"""What the counter of lines counts, on which tests of costs rest."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from tests.support.cost import lines

if TYPE_CHECKING:
    from collections.abc import Callable


class _Left:
    """Refers to itself, so only a collection finds it, and says so at length."""

    def __init__(self) -> None:
        self.self = self

    def __del__(self) -> None:
        for _ in range(100):
            pass


def test_what_other_tests_left_is_not_counted() -> None:
    usual = gc.get_threshold()

    def work() -> object:
        # In one line, so that the counter's own objects cause no collection in between.
        collect: Callable[[int], object] = gc.set_threshold
        return collect(5), list(map(list, [()] * 1000))

    try:
        gc.collect()
        alone = lines(work)
        gc.set_threshold(*usual)
        for _ in range(10):
            _Left()
        assert lines(work) == alone
    finally:
        gc.set_threshold(*usual)
        gc.collect()
