"""What owners of connections use: in metrics without their names, in the status by name."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError

from sds.agent.admin import encode
from sds.agent.budget_settings import BudgetsSection
from sds.agent.owners import Owners
from sds.commands.json_output import plain
from sds.errors import LimitError
from sds.operations.metrics.owners import OwnersCollector
from sds.serving.name_budget import NameLimits
from sds.transport.budget import CONNECTION_BYTES, Budgets
from sds.transport.budget_sizes import RECOGNISED, STRANGERS, Share, Total
from sds.transport.usage import LIMITS, largest
from tests.unit.test_status_command import state, text

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def used(owners: int = 100) -> Budgets:
    """Many pods; number 7 is over its budget, number 9 holds the most; a stranger connects."""
    table = Budgets(Share(connections=3, streams=4))
    for number in range(owners):
        owner = table.owner(f"pod {number}")
        owner.recognise()
        for _ in range(5 if number == 7 else 1):
            with contextlib.suppress(LimitError):
                owner.connect(lambda: None, 0.0)
    table.owner("pod 9").change(streams=3, held=1_000_000)
    table.owner("uid 1").connect(lambda: None, 0.0)
    return table


def scraped(table: Budgets | None) -> dict[str, float]:
    registry = CollectorRegistry()
    OwnersCollector(registry).budgets = table
    samples: dict[str, float] = {}
    for line in generate_latest(registry).decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            samples[name] = float(value)
    return samples


def test_metrics_name_no_owner_and_are_there_from_the_start() -> None:
    before, after = scraped(None), scraped(used())
    assert before.keys() == after.keys()
    assert len(after) == len(LIMITS) + 3 * 2 + 1
    assert set(before.values()) == {0.0}
    assert after['sds_owner_budget_exceeded_total{limit="connections"}'] == 2
    assert after['sds_owner_connections{owners="recognised"}'] == 102
    assert after['sds_owner_connections{owners="strangers"}'] == 1
    assert after['sds_owner_held_bytes{owners="strangers"}'] == CONNECTION_BYTES
    assert after["sds_owner_largest_held_bytes"] == 1_000_000 + CONNECTION_BYTES


def test_every_limit_that_can_be_exceeded_is_a_label() -> None:
    table = Budgets(
        Share(connections=1, streams=1, held_bytes=1, refusals_per_second=0.1, refusal_burst=1.0)
    )
    owner = table.owner("pod a")
    owner.recognise()
    owner.connect(lambda: None, 0.0)
    owner.change(streams=2, held=10)
    attempts: tuple[Callable[[], object], ...] = (
        lambda: owner.connect(lambda: None, 0.0),
        lambda: owner.check_stream(0.0),
        lambda: owner.check_room(1, 0.0),
        *[lambda: owner.refused(0.0)] * 9,
    )
    for attempt in attempts:
        with contextlib.suppress(LimitError):
            attempt()
    assert set(table.exceeded["pod a"]) == set(LIMITS)


def test_the_status_names_who_is_over_its_budget_and_who_uses_the_most() -> None:
    table = used()
    shown = state(owners=largest(table, 4))
    assert [one.name for one in shown.owners[:2]] == ["pod 7", "pod 9"]
    words = "\n".join(text(shown))
    assert "pod 7 exceeded its budget: connections 2x; 3 connections" in words
    assert "the most memory: pod 9: 1 connections, 3 streams, 1.0 MiB" in words
    read: Any = json.loads(json.dumps(plain(encode(shown))))
    assert read["owners"][0]["exceeded"] == {"connections": 2}
    assert read["owners"][1]["held_bytes"] == 1_000_000 + CONNECTION_BYTES


def test_without_settings_the_defaults_are_in_force() -> None:
    section = BudgetsSection()
    assert section.owner.share() == RECOGNISED
    assert section.strangers.share(STRANGERS) == STRANGERS
    assert section.total(1 << 20) == Total.of_descriptors(1 << 20)


def test_what_is_written_is_in_force() -> None:
    section = BudgetsSection.model_validate(
        {
            "owner": {"connections": 7, "memory": "8MiB", "processor": 0.25},
            "strangers": {"streams": 9},
            "memory": "64MiB",
        }
    )
    budgets = Owners(None, section).budgets
    share, strangers = budgets.share, budgets.strangers.share
    assert (share.connections, share.held_bytes, share.processor) == (7, 8 << 20, 0.25)
    assert (strangers.streams, strangers.connections) == (9, STRANGERS.connections)
    assert section.total(1 << 20).held_bytes == 64 << 20


@pytest.mark.parametrize("limit", [None, 256, 1024])
def test_where_there_is_memory_enough_the_defaults_are_in_force(limit: int | None) -> None:
    owners = Owners(None, BudgetsSection(), memory=None if limit is None else limit << 20)
    assert owners.budgets.share == RECOGNISED
    assert owners.memory.names(NameLimits()) == NameLimits()
    assert owners.memory.notices == ()


@pytest.mark.parametrize("limit", [64, 96, 128, 192])
def test_a_small_control_group_makes_budgets_small(limit: int) -> None:
    """The program itself, all that owners hold and all names stay below the limit."""
    owners = Owners(None, BudgetsSection(), memory=limit << 20)
    total, names = owners.budgets._total, owners.memory.names(NameLimits())
    if limit > 80 + 11:
        assert (80 << 20) + total.held_bytes + names.everybody <= limit << 20
    assert owners.budgets.share.held_bytes < total.held_bytes
    assert 8 * owners.budgets.strangers.share.held_bytes < total.held_bytes * 3
    assert 0 < total.spared_bytes < total.held_bytes
    assert (limit < 112) == bool(owners.memory.notices)


def test_memory_that_is_written_stays_as_written() -> None:
    section = BudgetsSection.model_validate({"memory": "90MiB"})
    owners = Owners(None, section, memory=128 << 20)
    assert owners.budgets._total.held_bytes == 90 << 20


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ({"owner": {"memory": "65MiB"}, "memory": "64MiB"}, "owner.memory"),
        ({"strangers": {"memory": "200MiB"}}, "strangers.memory"),
        ({"owner": {"processor": 1.5}}, "processor"),
        ({"strangers": {"connections": 0}}, "connections"),
    ],
)
def test_what_cannot_be_is_refused(written: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        BudgetsSection.model_validate(written)
