"""Answers of kubelet and API server are read in bounded ways."""

from __future__ import annotations

import pytest

from sds.workload.kubernetes.server import parse_json


@pytest.mark.parametrize("size", [100_000, 400_000])
async def test_deep_json_is_a_value_error_short_or_long(size: int) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        await parse_json(b"[" * size)


async def test_a_long_answer_is_read_whole() -> None:
    assert await parse_json(b"[" + b"1," * 200_000 + b"1]") == [1] * 200_001
