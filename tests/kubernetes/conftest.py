"""Collected only by `make test-kubernetes`: a cluster is not part of the whole suite."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.cluster import check_unused
from tests.support.guarded_node import NAMESPACE, NODE, guarded_node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.guarded_node import GuardedNode

collect_ignore_glob = [] if os.environ.get("SDS_IMAGE") else ["test_*.py"]


@pytest.fixture
async def node() -> AsyncIterator[GuardedNode]:
    if not NODE:
        pytest.skip("SDS_NODE_SHELL names no command that reaches the node")
    await check_unused(NAMESPACE)
    async with guarded_node() as found:
        yield found
