from collections.abc import Callable
from typing import Any

from sds.secrets.heap_trim import give_back
from sds.serving.crowd_trimmer import CROWD, QUIET_SECONDS, REST_SECONDS, CrowdTrimmer


class Timers:
    """An event loop, as far as it is needed: timers that fire by hand."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.seconds: list[float] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        self.seconds.append(seconds)
        self.waiting.append(callback)
        timers = self

        class Handle:
            def cancel(self) -> None:
                timers.waiting.remove(callback)

        return Handle()

    def fire(self) -> None:
        self.waiting.pop()()


def test_memory_goes_back_once_after_a_crowd_and_quiet() -> None:
    timers, given = Timers(), []
    crowd = CrowdTrimmer(timers, lambda: given.append(1))  # type: ignore[arg-type]  # by hand
    for _ in range(CROWD - 1):
        crowd.opened()
    assert not timers.waiting
    for _ in range(CROWD):
        crowd.opened()
    assert len(timers.waiting) == 1
    crowd.opened()
    timers.fire()  # not quiet yet
    assert (len(timers.waiting), given) == (1, [])
    timers.fire()
    assert given == [1]
    timers.fire()  # rested
    crowd.opened()
    assert (timers.waiting, given) == ([], [1])


def test_crowds_that_come_again_and_again_wait_for_the_rest() -> None:
    timers, given = Timers(), []
    crowd = CrowdTrimmer(timers, lambda: given.append(1))  # type: ignore[arg-type]  # by hand
    for _ in range(CROWD):
        crowd.opened()
    timers.fire()
    assert (given, timers.seconds) == ([1], [QUIET_SECONDS, REST_SECONDS])
    for _ in range(10 * CROWD):
        crowd.opened()
    assert len(timers.waiting) == 1
    timers.fire()  # rested: now the quiet after the next crowd counts
    timers.fire()
    assert given == [1, 1]


def test_closing_stops_the_timer() -> None:
    timers = Timers()
    crowd = CrowdTrimmer(timers, give_back)  # type: ignore[arg-type]  # by hand
    for _ in range(CROWD):
        crowd.opened()
    crowd.close()
    assert not timers.waiting
    give_back()
