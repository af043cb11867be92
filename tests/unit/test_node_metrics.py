"""What the node-wide socket refuses: each owner is in the log, and every reason in the metrics."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import CollectorRegistry, generate_latest

from sds.errors import WorkloadError
from sds.operations.metrics.node import REASONS, NodeCollector
from sds.workload.front_door import FrontDoor, Statistics

if TYPE_CHECKING:
    import pytest


def scraped(source: Statistics | None) -> dict[str, float]:
    registry = CollectorRegistry()
    NodeCollector(registry).source = source
    lines = (
        line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")
    )
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_reasons_are_there_from_the_start_and_count() -> None:
    before = scraped(None)
    assert len(before) == 1 + len(REASONS)
    assert set(before.values()) == {0.0}
    after = scraped(Statistics(accepted=3, refused=Counter(connection_rate=211, news=1)))
    assert after["sds_node_connections_accepted_total"] == 3
    assert after['sds_node_connections_refused_total{reason="connection_rate"}'] == 211
    assert after['sds_node_connections_refused_total{reason="news"}'] == 1
    assert before.keys() < after.keys()


async def test_each_owner_that_is_turned_away_has_its_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        door = FrontDoor(listener, recogniser=cast("Any", None))
        for _ in range(100):
            for whose in ("process 7 of user 1009", "process 8 of user 1001"):
                door._refused("connection_rate", WorkloadError(whose, reason="connection_rate"))
        assert [str(record.__dict__["why"]) for record in caplog.records] == [
            "process 7 of user 1009",
            "process 8 of user 1001",
        ]
        for number in range(2_000):  # callers choose how many processes they are
            door._refused("connection_rate", WorkloadError(str(number), reason="connection_rate"))
        assert len(caplog.records) < 20
        door._refused("descriptors", OSError("none left"))
        assert door.statistics.refused == {"connection_rate": 2_200, "descriptors": 1}
    assert caplog.records[0].levelno == logging.WARNING
