"""How long an agent waits for an authority with too much to do, and how often it asks."""

from __future__ import annotations

import grpc
import pytest

from sds.authority import attested
from sds.authority.attested import AuthoritySettings
from sds.authority.patience import longest_seconds, patient_seconds, reason_of_end
from sds.authority.replicas import most_telling
from sds.errors import AuthorityUnavailableError
from tests.support.authority import World

LATE = AuthorityUnavailableError("late", reason="authority_no_answer")
DOWN = AuthorityUnavailableError("down")


def settings(replicas: int = 1, connect: float = 5.0, answer: float = 30.0) -> AuthoritySettings:
    return AuthoritySettings(
        addresses=tuple(f"127.0.0.1:{8443 + each}" for each in range(replicas)),
        connect_seconds=connect,
        answer_seconds=answer,
    )


def test_each_attempt_without_an_answer_in_time_waits_longer_up_to_a_bound() -> None:
    assert [patient_seconds(settings(), late) for late in (0, 1, 2, 1000)] == [5, 10, 15, 15]


@pytest.mark.parametrize("replicas", [1, 2, 3, 5])
def test_a_round_over_all_replicas_takes_no_longer_than_one_answer(replicas: int) -> None:
    assert replicas * longest_seconds(settings(replicas)) <= 30


@pytest.mark.parametrize("replicas", [6, 50])
def test_what_is_configured_is_never_shortened(replicas: int) -> None:
    assert patient_seconds(settings(replicas), 9) == 5.0
    assert patient_seconds(settings(connect=40.0), 3) == 40.0


def test_only_an_end_for_lack_of_room_or_time_counts_as_no_answer() -> None:
    late = {code for code in grpc.StatusCode if reason_of_end(code, "")}
    assert late == {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.mark.parametrize(
    ("details", "late"),
    [
        ("connections to all backends failing; last error: connection attempt timed out", True),
        ("failed to connect to all addresses; last error: Timeout occurred: FD Shutdown", True),
        ("failed to connect to all addresses; last error: Connection refused", False),
        ("the authority is stopping", False),
    ],
)
def test_grpc_says_in_words_that_a_connection_took_too_long(details: str, *, late: bool) -> None:
    assert (reason_of_end(grpc.StatusCode.UNAVAILABLE, details) is not None) is late


def test_replicas_answer_nobody_only_if_none_does() -> None:
    assert most_telling([LATE, LATE]).reason == "authority_no_answer"
    assert most_telling([LATE, DOWN]).reason == "authority_unavailable"


async def test_a_client_waits_longer_until_somebody_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[float] = []
    failures = [LATE, LATE, LATE, DOWN, LATE]

    async def connect(_addresses: object, _tls: object, *, seconds: float) -> None:
        waited.append(seconds)
        raise failures[len(waited) - 1]

    monkeypatch.setattr(attested, "connect", connect)
    async with World().client(settings=settings()) as client:
        for _ in failures:
            with pytest.raises(AuthorityUnavailableError):
                await client.roots()
    assert waited == [5, 10, 15, 15, 5]  # a refused connection is an answer
