"""Fixtures of the attacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.node import enterable_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users may enter."""
    with enterable_folder() as folder:
        yield folder
