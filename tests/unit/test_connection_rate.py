"""Who may connect while more connections come than can be looked at."""

from __future__ import annotations

import contextlib

import pytest

from sds.errors import WorkloadError
from sds.workload.connection_rate import ConnectionRates
from tests.support.refusals import refused


def admitted(
    rates: ConnectionRates, callers: list[tuple[int, int]], *, seconds: float = 1.0
) -> int:
    """How many of these (pid, uid), spread over the time, come in while it is crowded."""
    count = 0
    for number, (pid, uid) in enumerate(callers):
        with contextlib.suppress(WorkloadError):
            rates.count(pid, uid, 100 + seconds * number / len(callers), crowded=True)
            count += 1
    return count


@pytest.mark.parametrize(
    "attackers",
    [
        [(7, 1009)] * 20_000,
        [(7 + number % 3, 1009) for number in range(20_000)],
    ],
)
def test_another_user_is_admitted_while_one_connects_without_end(
    attackers: list[tuple[int, int]],
) -> None:
    rates = ConnectionRates()
    assert admitted(rates, attackers) < 600
    assert admitted(rates, [(1, 1001), (2, 1009)]) == 2  # and another process of the same user


@pytest.mark.parametrize(
    "attackers",
    [
        [(number, 1009) for number in range(20_000)],
        [(number, 100_000 + number % 5_000) for number in range(20_000)],
        [(7, 100_000 + number % 60_000) for number in range(60_000)],
    ],
)
def test_a_user_that_was_recognised_shares_nothing_with_strangers(
    attackers: list[tuple[int, int]],
) -> None:
    """However many processes and users the strangers come as."""
    rates = ConnectionRates()
    rates.recognise(1001)
    assert admitted(rates, attackers) < 1_400
    assert admitted(rates, [(1, 1001)] * 100) == 100


def test_a_crowd_that_fits_is_admitted_whoever_it_is() -> None:
    rates = ConnectionRates()
    for _ in range(10_000):
        rates.count(7, 1009, 100, crowded=False)
    with refused("connection_rate", match="process 7 of user 1009"):
        rates.count(7, 1009, 100, crowded=True)
    rates.count(7, 1009, 101, crowded=True)  # what was too much is not owed


def test_the_tables_are_bounded() -> None:
    rates = ConnectionRates()
    for number in range(20_000):
        rates.count(number, number, 100.0, crowded=False)
        rates.recognise(number)
    assert len(rates._accounts) <= 4096
    assert len(rates._known) <= 4096
