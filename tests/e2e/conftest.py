"""Fixtures of the tests with real processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.node import Node, lasting_authority, short_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def authority() -> Iterator[int]:
    with lasting_authority() as port:
        yield port


@pytest.fixture
def node(authority: int) -> Iterator[Node]:
    """A node whose agent asks an authority that lives as long as the module."""
    with short_folder() as folder:
        yield Node(folder, port=authority)
