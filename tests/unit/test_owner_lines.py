"""An owner's log lines are bounded; nobody else's are."""

from __future__ import annotations

import contextvars
import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from sds.operations import logs
from sds.transport.budget import Budgets
from sds.transport.budget_sizes import Share
from sds.transport.owner_lines import RUNS_FOR

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGER = logging.getLogger("sds.test")


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    top = logging.getLogger()
    before, level = list(top.handlers), top.level
    stream = io.StringIO()
    logs.configure(style="json", level="info", stream=stream)
    yield stream
    top.handlers[:] = before
    top.setLevel(level)


def test_lines_beyond_the_allowance_are_counted(written: io.StringIO) -> None:
    budgets = Budgets(Share(line_burst=3.0, lines_per_second=1e-6))
    owner = budgets.owner("pod a")
    owner.recognise()
    other = budgets.owner("pod b")
    other.recognise()

    def chatter() -> None:
        for number in range(50):
            LOGGER.info("line %d", number)

    def of(whose: object) -> contextvars.Context:
        context = contextvars.copy_context()
        context.run(RUNS_FOR.set, whose)  # type: ignore[arg-type]
        return context

    of(owner).run(chatter)
    LOGGER.info("ours")
    of(other).run(LOGGER.info, "another's")
    events = [json.loads(line)["event"] for line in written.getvalue().splitlines()]
    assert events == [*(f"line {n}" for n in range(4)), "ours", "another's"]
    assert owner.suppressed == 46
    owner.account.lines = type(owner.account.lines)(1.0, 10.0)
    of(owner).run(LOGGER.info, "later")
    assert json.loads(written.getvalue().splitlines()[-1])["suppressed"] == 46
