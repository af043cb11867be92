"""A caller that a rule matches does not wait behind strangers."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import grpc
import pytest

from sds.workload.recognition import Timing
from tests.support.front_door import ask, front_door, rules, unix, until

if TYPE_CHECKING:
    from pathlib import Path

OURS = {"unix:uid": str(os.geteuid())}
NAME = f"uid {os.geteuid()}"


async def test_a_caller_has_its_own_budget_as_soon_as_a_rule_matches(tmp_path: Path) -> None:
    async with front_door(tmp_path, attestors=unix(), rules=rules(OURS)) as door:
        owner = door.server.budgets.owner(NAME)
        _, writer = await asyncio.open_unix_connection(str(door.path))
        try:
            # Nothing is sent: the first call does not have to pass the strangers' account.
            await until(lambda: owner.connections == 1 and owner.recognised)
        finally:
            writer.close()


async def test_a_stranger_stays_one(tmp_path: Path) -> None:
    nobody, fast = rules({"unix:uid": "4242"}), Timing(hold=0.2, retry_first=0.02)
    async with front_door(tmp_path, attestors=unix(), rules=nobody, timing=fast) as door:
        owner = door.server.budgets.owner(NAME)
        _, writer = await asyncio.open_unix_connection(str(door.path))
        try:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(door.path)
            assert owner.connections >= 1
            assert not owner.recognised
        finally:
            writer.close()
