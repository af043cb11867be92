"""What holds for whole folders of tests.

Coverage is measured where one test runs one piece of the program. The folders below run the same
lines thousands of times (properties, costs, mutants), read the program instead of running it, or
start it as another process: there the measurement tells nothing new and takes half of the time.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

FOLDER = Path(__file__).parent
UNMEASURED = ("cost", "docs", "e2e", "property")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Measure in workers only, and once in each.

    pytest-cov begins a measurement before a process knows that it is a worker, and a second one
    then. While the second pauses, for a test that is not measured, the first would go on.
    """
    plugin = session.config.pluginmanager.getplugin("_cov")
    handed_out = session.config.getoption("dist", "no") != "no"
    if plugin is None or plugin.cov_controller is None:
        return
    if handed_out or hasattr(session.config, "workerinput"):
        plugin.cov_controller.cov.stop()


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Measure in the first worker what loading the tests runs: it is the same in each."""
    plugin = session.config.pluginmanager.getplugin("_cov")
    controller = None if plugin is None else plugin.cov_controller
    worker = getattr(session.config, "workerinput", {}).get("workerid", "gw0")
    if controller is None or worker == "gw0":
        return (yield)
    controller.pause()
    try:
        return (yield)
    finally:
        controller.resume()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the tests of these folders out of the coverage."""
    for item in items:
        if item.path.relative_to(FOLDER).parts[0] in UNMEASURED:
            item.add_marker(pytest.mark.no_cover)


def pytest_collection_finish() -> None:
    """Leave what the modules loaded out of every later garbage collection.

    Many tests collect to see what is left of a connection; they need not look at the modules again.
    """
    gc.collect()
    gc.freeze()
