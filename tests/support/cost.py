"""How much a piece of work costs: lines of Python that run, and processor time of the thread.

Lines are counted by the interpreter, so the same work always counts the same; processor time finds
what no line shows (copies, searches in C). Neither looks at the wall clock.
"""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NOISE_SECONDS = 0.002
"""Below this, processor time says nothing about how it grows."""


class Lines:
    """How many lines of Python this thread has run, in whatever module.

    Attributes:
        count: the lines so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def trace(self, _frame: Any, event: str, _argument: Any) -> Any:
        """What ``sys.settrace`` takes."""
        if event == "line":
            self.count += 1
        return self.trace


@contextlib.contextmanager
def counted_lines() -> Iterator[Lines]:
    """Count the lines of every function that this thread enters while the block runs.

    Nothing is collected meanwhile: finalizers of what other tests left would count.
    """
    counted = Lines()
    before, collects = sys.gettrace(), gc.isenabled()
    gc.disable()
    sys.settrace(counted.trace)
    try:
        yield counted
    finally:
        sys.settrace(before)
        if collects:
            gc.enable()


def lines(work: Callable[[], object]) -> int:
    """Lines of Python that ``work`` runs, in whatever module."""
    with counted_lines() as counted:
        work()
    return counted.count


def seconds(prepare: Callable[[], Callable[[], object]], repeats: int = 3) -> float:
    """Processor time of the work that ``prepare`` makes ready; the least of some repeats."""
    least = float("inf")
    for _ in range(repeats):
        work = prepare()
        gc.disable()  # and no collection before: it looks at all that other tests left
        try:
            began = time.thread_time()
            work()
            least = min(least, time.thread_time() - began)
        finally:
            gc.enable()
    return least


def reference_seconds() -> float:
    """Processor time of a fixed piece of Python, about 10 ms on a quiet machine of 2026.

    A machine that is busy, or that its host gives less, takes longer for this as for all else.
    """

    def work() -> None:
        table: dict[int, bytes] = {}
        for number in range(60_000):
            table[number & 1023] = number.to_bytes(4, "big")

    return seconds(lambda: work)


def assert_linear(make: Callable[[int], Callable[[], object]], size: int) -> None:
    """Work of 2 and 4 times the size costs at most about 2 and 4 times as much.

    Args:
        make: gives work of a size, fresh each time.
        size: the smallest.
    """
    one, two, four = (lines(make(size * times)) for times in (1, 2, 4))
    slack = one // 4 + 200
    assert two <= 2 * one + slack, f"{one} lines for {size}, {two} for twice as much"
    assert four <= 4 * one + slack, f"{one} lines for {size}, {four} for four times as much"
    # Quadratic work takes 16 times as long: far from this bound, which caches may reach.
    _assert_within(8, lambda: make(size), lambda: make(4 * size))


def assert_same(
    make: Callable[[int], Callable[[], object]], *, few: int, many: int, factor: float = 1.5
) -> None:
    """The same work costs the same whatever else is there, within ``factor``.

    Args:
        make: gives the work where so many other things are there.
        few: a number of them.
        many: a much larger one.
        factor: between the two.
    """
    alone, crowded = lines(make(few)), lines(make(many))
    assert crowded <= factor * alone + 200, f"{alone} lines beside {few}, {crowded} beside {many}"
    _assert_within(4, lambda: make(few), lambda: make(many))


def _assert_within(
    factor: float,
    small: Callable[[], Callable[[], object]],
    large: Callable[[], Callable[[], object]],
) -> None:
    """The larger work takes at most ``factor`` times the processor time of the smaller.

    Whatever else the machine does only adds to a measurement, so the least of more of them is
    nearer to the truth: too long is what is too long each time, and once short enough will do.
    """
    least_small = least_large = float("inf")
    for _ in range(5):
        least_small = min(least_small, seconds(small))
        for _ in range(3):
            least_large = min(least_large, seconds(large, repeats=1))
            if least_large <= factor * max(least_small, _NOISE_SECONDS):
                return
    raise AssertionError(f"seconds of the smaller and the larger: {least_small}, {least_large}")
