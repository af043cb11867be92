"""What each owner of connections may use, and what happens to those who use more."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sds.errors import LimitError
from sds.transport.budget import CONNECTION_BYTES, SAID_SECONDS, STREAM_BYTES, Budgets, Owner
from sds.transport.budget_sizes import Share, Total
from sds.transport.rate import Allowance

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1024 * 1024
SHARE = Share(
    connections=8,
    streams=4,
    held_bytes=200_000,
    processor=0.5,
    processor_burst_seconds=1.0,
    refusals_per_second=1.0,
    refusal_burst=3.0,
    lines_per_second=0.5,
    line_burst=2.0,
)


def budgets(**more: int) -> Budgets:
    return Budgets(SHARE, strangers=SHARE, total=Total(spared_connections=0, **more))


def known(table: Budgets, name: str = "pod a") -> Owner:
    owner = table.owner(name)
    owner.recognise()
    return owner


def closing() -> Callable[[], None]:
    return lambda: None


def test_connections_are_counted_and_given_back() -> None:
    table = budgets()
    owner = known(table)
    closes = [closing() for _ in range(8)]
    for close in closes:
        owner.connect(close, 0.0)
    with pytest.raises(LimitError, match="pod a has more than 8 connections") as caught:
        owner.connect(closing(), 0.0)
    assert caught.value.reason == "owner_budget"
    owner.disconnect(closes[0])
    owner.connect(closing(), 0.0)
    assert owner.held == 8 * CONNECTION_BYTES
    known(table, "pod b").connect(closing(), 0.0)  # nobody else notices


def test_streams_and_memory_are_bounded() -> None:
    owner = known(budgets())
    owner.change(streams=5, held=5 * STREAM_BYTES)
    with pytest.raises(LimitError, match="more than 4 streams"):
        owner.check_stream(0.0)
    owner.change(streams=-1, held=-5 * STREAM_BYTES)
    owner.check_stream(0.0)
    owner.check_room(200_000, 0.0)
    with pytest.raises(LimitError, match="memory"):
        owner.check_room(200_001, 0.0)


def test_reconnecting_refills_nothing() -> None:
    table = budgets()
    owner = known(table)
    close = closing()
    owner.connect(close, 0.0)
    owner.account.processor.use(3.0, 0.0)  # of the 1.0 that it has at once: 4 s too early
    owner.disconnect(close)
    again = table.owner("pod a")
    assert again.account.processor.rest_seconds(0.0) == pytest.approx(4.0)
    assert again.account.processor.rest_seconds(3.0) == pytest.approx(1.0)


def test_forgetting_an_owner_refills_nothing() -> None:
    table = budgets(owners=2)
    spent = known(table, "pod spent")
    spent.account.processor.use(1.0, 0.0)
    known(table, "pod idle")
    full = known(table, "pod c")
    assert not full.recognised  # no room: it stays a stranger
    full.connect(closing(), 0.5)  # this looks for owners to forget
    assert set(table.owners) == {"pod spent"}
    known(table, "pod d").connect(closing(), 60.0)
    assert "pod spent" not in table.owners  # a new one would not differ now


def test_strangers_have_one_account_however_many_names_they_have() -> None:
    table = budgets()
    for uid in range(100_000, 100_400):
        owner = table.owner(f"uid {uid}")
        close = closing()
        owner.connect(close, 0.0)
        owner.account.processor.use(0.01, 0.0)
        owner.disconnect(close)
    assert not table.owners
    assert table.owner("uid 7").account.processor.rest_seconds(0.0) == pytest.approx(6.0)
    pod = known(table)
    assert pod.account.processor.rest_seconds(0.0) == 0


def test_strangers_who_are_turned_away_take_no_place_in_the_table() -> None:
    """Else each of many names would keep one, and who is recognised would find none."""
    table = budgets(connections=16, owners=8)
    for name in ("pod a", "pod b"):
        for _ in range(8):
            known(table, name).connect(closing(), 0.0)
    for uid in range(20):
        with pytest.raises(LimitError, match="no room"):
            table.owner(f"uid {uid}").connect(closing(), 0.0)
    assert set(table.owners) == {"pod a", "pod b"}
    assert known(table, "pod c").recognised


def test_the_oldest_stranger_gives_way_to_a_new_one() -> None:
    table = budgets()
    closed: list[str] = []

    def connect(name: str) -> None:
        owner = table.owner(name)

        def close() -> None:
            closed.append(name)
            owner.disconnect(close)

        owner.connect(close, 0.0)

    for number in range(8):
        connect(f"uid {number // 2}")
    assert not closed
    connect("uid 99")
    assert closed == ["uid 0"]
    with pytest.raises(LimitError, match="more than 2 connections, and no rule recognises it"):
        connect("uid 1")  # it has a quarter of them already
    assert table.strangers.connections == 8


def test_a_stranger_with_many_streams_leaves_others_some() -> None:
    table = Budgets(SHARE, strangers=replace(SHARE, streams=512))
    greedy = table.owner("uid 1")
    for number in range(128):
        greedy.change(streams=1, held=0)
        greedy.check_stream(number)
    greedy.change(streams=1, held=0)
    with pytest.raises(LimitError, match="uid 1 has more than 128 streams, and no rule") as caught:
        greedy.check_stream(0.0)
    assert caught.value.reason == "owner_budget"
    others = [table.owner(f"uid {number}") for number in range(2, 50)]
    for owner in others[:2]:
        for _ in range(64):
            owner.change(streams=1, held=0)
            with contextlib.suppress(LimitError):
                owner.check_stream(0.0)
    for owner in others[2:]:
        owner.change(streams=3, held=0)  # an Envoy that has just come
        owner.check_stream(0.0)
    with pytest.raises(LimitError, match="more than 16 streams"):
        others[0].check_stream(0.0)
    others[0].recognise()
    table.owner("uid 2").change(streams=-63, held=0)
    others[0].check_stream(0.0)


def test_a_stranger_with_much_memory_leaves_others_some() -> None:
    table = Budgets(SHARE, strangers=replace(SHARE, held_bytes=8 * MIB))
    greedy, modest = table.owner("uid 1"), table.owner("pod a")
    greedy.check_room(2 * MIB, 0.0)
    with pytest.raises(LimitError, match="more than 2048 KiB of memory, and no rule"):
        greedy.check_room(2 * MIB + 1, 0.0)
    for uid in range(2, 6):
        table.owner(f"uid {uid}").change(streams=0, held=MIB)
    modest.check_room(256 * 1024, 0.0)
    with pytest.raises(LimitError, match="more than 256 KiB"):
        modest.check_room(256 * 1024 + 1, 0.0)


def test_few_streams_are_for_everybody() -> None:
    for most in (1, 8, 32):
        table = Budgets(SHARE, strangers=replace(SHARE, streams=most))
        owner = table.owner("uid 1")
        owner.change(streams=min(most, 8), held=0)
        owner.check_stream(0.0)


class Connected:
    """A connection that is gone only a turn of the loop after it was told to go, as real ones."""

    def __init__(self, owner: Owner) -> None:
        self.told = False
        owner.connect(self.go, 0.0)

    def go(self) -> None:
        self.told = True


def test_a_new_stranger_ends_one_other_though_that_one_is_gone_later() -> None:
    table = budgets()
    before = [Connected(table.owner(f"uid {number // 2}")) for number in range(8)]
    Connected(table.owner("uid 8"))
    Connected(table.owner("uid 9"))
    assert [one.told for one in before] == [True, True] + [False] * 6


def test_a_user_with_many_names_takes_no_place_of_a_pod_that_just_started() -> None:
    """The kubelet lists a pod some tenths of a second after its first process connects."""
    table = budgets()
    pods = [Connected(table.owner(f"pod {number}")) for number in range(3)]
    users = [Connected(table.owner(f"uid {number}")) for number in range(100)]
    assert not any(one.told for one in pods)
    assert [one.told for one in users] == [True] * 95 + [False] * 5


def test_strangers_end_no_connection_of_who_was_recognised_meanwhile() -> None:
    table = budgets()
    victim = table.owner("pod a")
    envoy = Connected(victim)
    victim.recognise()
    for uid in range(100):
        Connected(table.owner(f"uid {uid}"))
    assert not envoy.told


def test_who_was_recognised_and_comes_again_is_no_stranger() -> None:
    """Else each new connection of an Envoy would compete with the strangers of the moment."""
    table = budgets(owners=512)
    victim = known(table)
    close = closing()
    victim.connect(close, 0.0)
    victim.disconnect(close)
    for uid in range(100):
        Connected(table.owner(f"uid {uid}"))
    assert table.owner("pod a").recognised


def test_recognition_moves_what_an_owner_uses() -> None:
    table = budgets()
    owner = table.owner("pod a")
    owner.connect(closing(), 0.0)
    owner.change(streams=2, held=1_000)
    assert table.strangers.streams == 2
    owner.recognise()
    owner.recognise()
    assert (table.strangers.connections, table.strangers.streams, table.strangers.held) == (0, 0, 0)
    assert (owner.connections, owner.streams) == (1, 2)
    owner.change(streams=-2, held=-1_000)
    assert table.all.held == owner.held == CONNECTION_BYTES


def test_the_last_part_is_for_owners_that_have_little() -> None:
    table = Budgets(
        Share(held_bytes=10_000_000),
        total=Total(held_bytes=1_000_000, spared_bytes=400_000),
    )
    greedy, modest = known(table, "pod greedy"), known(table, "pod modest")
    greedy.change(streams=0, held=600_000)
    with pytest.raises(LimitError, match="no room"):
        greedy.check_room(1, 0.0)
    modest.check_room(50_000, 0.0)


def test_however_many_owners_take_what_they_may_the_next_one_finds_room() -> None:
    """Such as the pods of one tenant: two take the most, and many take little each."""

    def fill(owner: Owner) -> None:
        with contextlib.suppress(LimitError):
            while True:
                owner.check_room(16_384, 0.0)
                owner.change(streams=0, held=16_384)

    def connect(owner: Owner) -> None:
        with contextlib.suppress(LimitError):
            while True:
                owner.connect(closing(), 0.0)

    for take in (fill, connect):
        table = Budgets()
        for number in range(80):
            take(known(table, f"pod {number}"))
        victim = known(table, "pod victim")
        victim.connect(closing(), 0.0)
        victim.connect(closing(), 0.0)
        victim.change(streams=3, held=3 * STREAM_BYTES)
        victim.check_stream(0.0)
        victim.check_room(32_768, 0.0)


@pytest.mark.parametrize("memory", [20, 30, 64])
def test_an_envoy_has_little_on_a_small_machine_too(memory: int) -> None:
    total = Total(held_bytes=memory << 20, spared_bytes=(memory << 20) // 7)
    table = Budgets(total=total)
    envoy = known(table, "pod envoy")
    envoy.connect(closing(), 0.0)
    envoy.change(streams=1, held=18 * 1024 + STREAM_BYTES)
    for number in range(12):
        greedy = known(table, f"pod {number}")
        with contextlib.suppress(LimitError):
            while True:
                greedy.check_room(16_384, 0.0)
                greedy.change(streams=0, held=16_384)
    envoy.check_room(0, 0.0)
    envoy.check_stream(0.0)


def test_descriptors_are_left() -> None:
    total = Total.of_descriptors(1_024)
    assert 2 * total.connections <= 1_024 - 256
    assert Total.of_descriptors(1_000_000).connections == Total().connections
    table = Budgets(total=Total(connections=4, spared_connections=0))
    for name in ("pod a", "pod a", "pod b", "pod b"):
        known(table, name).connect(closing(), 0.0)
    with pytest.raises(LimitError, match="no room"):
        known(table, "pod c").connect(closing(), 0.0)


@pytest.mark.parametrize("descriptors", [64, 400, 1_024, 1_000_000])
def test_with_few_descriptors_nobody_has_all_of_them(descriptors: int) -> None:
    """Strangers, and then one greedy pod, fill what they may: others find room."""
    table = Budgets(total=Total.of_descriptors(descriptors))

    def connect(owner: Owner) -> None:
        def give_way() -> None:
            owner.disconnect(give_way)

        owner.connect(give_way, 0.0)

    def fill(owner: Owner) -> None:
        with contextlib.suppress(LimitError):
            for _ in range(5_000):
                connect(owner)

    for number in range(40):
        fill(table.owner(f"uid {number}"))
    most = Total.of_descriptors(descriptors).connections
    assert 0 < table.all.connections <= most // 4
    fill(known(table))
    for number in range(most // 16):
        connect(known(table, f"pod {number}"))


def test_refused_calls_and_lines_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    table = budgets()
    owner = known(table)
    with caplog.at_level(logging.WARNING, logger="sds.transport"):
        for _ in range(3):
            owner.refused(0.0)
        for _ in range(100):
            with pytest.raises(LimitError, match="refused calls"):
                owner.refused(0.0)
    assert [record.message for record in caplog.records] == ["an owner exceeds its budget"]
    assert table.exceeded["pod a"]["refused calls"] == 100
    with caplog.at_level(logging.WARNING, logger="sds.transport"), pytest.raises(LimitError):
        owner.refused(SAID_SECONDS)
    assert caplog.records[-1].times == 100  # type: ignore[attr-defined]
    assert [owner.may_log(0.0) for _ in range(4)] == [True, True, True, False]
    assert owner.may_log(10.0)


def test_an_allowance_recovers() -> None:
    allowance = Allowance(2.0, 10.0)
    assert allowance.is_full(0.0)
    allowance.use(12.0, 0.0)
    assert allowance.rest_seconds(0.0) == pytest.approx(1.0)
    assert allowance.rest_seconds(1.0) == 0
    assert not allowance.is_full(5.9)
    assert allowance.is_full(6.0)


def test_the_greediest_process_gives_way_to_one_that_has_much_less() -> None:
    owner = known(budgets())
    closed: list[str] = []

    def connect(party: str) -> None:
        def close() -> None:
            closed.append(party)
            owner.disconnect(close, party=party)

        owner.connect(close, 0.0, party=party)

    for _ in range(8):
        connect("greedy")
    with pytest.raises(LimitError, match="connections"):
        connect("greedy")
    connect("modest")
    assert closed == ["greedy"]
    for _ in range(2):
        connect("modest")
    assert owner.connections == 8
    with pytest.raises(LimitError, match="connections"):
        connect("modest")  # it has 3 of 8 now
