"""What holds for whole folders of tests.

Coverage is measured where one test runs one piece of the program. The folders below run the same
lines thousands of times (properties, costs, mutants), read the program instead of running it, or
start it as another process: there the measurement tells nothing new and takes half of the time.
"""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
UNMEASURED = ("cost", "docs", "e2e", "property")


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
