"""Who may connect while more connections come than can be looked at."""

from __future__ import annotations

import contextlib

import pytest

from sds.errors import WorkloadError
from sds.workload.connection_rate import ConnectionRates
from tests.support.refusals import refused


def admitted(
    rates: ConnectionRates, callers: list[tuple[int, int]], *, pod: str = "", seconds: float = 1.0
) -> int:
    """How many of these (pid, uid), spread over the time, come in while it is crowded."""
    count = 0
    for number, (pid, uid) in enumerate(callers):
        with contextlib.suppress(WorkloadError):
            now = 100 + seconds * number / len(callers)
            rates.count(pid, uid, now, crowded=True, pod=lambda: pod)
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
    rates.recognise("uid 1001")
    assert admitted(rates, attackers) < 1_400
    assert admitted(rates, [(1, 1001)] * 100) == 100


@pytest.mark.parametrize("recognised", [True, False])
def test_a_pod_shares_no_account_with_another_of_the_same_user(recognised: bool) -> None:  # noqa: FBT001
    """All pods of one image have one user, and its processes may be many."""
    rates = ConnectionRates()
    if recognised:
        rates.recognise("pod a")
        rates.recognise("pod b")
    of_a = admitted(rates, [(number, 1337) for number in range(20_000)], pod="pod a")
    assert of_a < (1_300 if recognised else 400)
    assert admitted(rates, [(-1, 1337)] * 100, pod="pod b") == 100
    with refused("connection_rate", match="by pod a"):
        for number in range(100):
            rates.count(-number, 1337, 101, crowded=True, pod=lambda: "pod a")


def test_users_outside_pods_leave_room_for_pods_that_no_rule_recognises_yet() -> None:
    rates = ConnectionRates()
    admitted(rates, [(number, 100_000 + number) for number in range(20_000)])
    with refused("connection_rate", match="users that no rule recognises"):
        for number in range(100):
            rates.count(-1, 200_000 + number, 101, crowded=True)
    assert admitted(rates, [(-2, 7)] * 100, pod="pod b") == 100


def test_the_pod_of_a_process_is_asked_for_once_and_again_after_a_rest() -> None:
    """Its number may have another process by then."""
    rates = ConnectionRates()
    asked: list[str] = []

    def pod() -> str:
        asked.append("")
        return f"pod {len(asked)}"

    for number in range(10):
        rates.count(7, 7, 100 + number / 100, crowded=True, pod=pod)
    assert len(asked) == 1
    rates.count(7, 7, 110, crowded=True, pod=pod)
    assert len(asked) == 2


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
        rates.recognise(f"uid {number}")
        rates.count(number, 7, 100.0, crowded=False, pod=lambda: "pod a")
    assert len(rates._accounts) <= 4096
    assert len(rates._known) <= 4096
    assert len(rates._pods) <= 4096
