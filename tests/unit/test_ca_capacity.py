"""How many connections an authority takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.ca.capacity import connections, memory_limit

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("memory", "descriptors", "expected"),
    [
        (None, 1_000_000, 10_064),
        (256 * MIB, 1_000_000, 768),
        (64 * MIB, 1_000_000, 256),
        (512 * MIB, 1_000_000, 4864),
        (8192 * MIB, 1_000_000, 10_064),
        (None, 1024, 448),
        (None, 100, 1),
    ],
)
def test_memory_and_descriptors_bound_connections(
    memory: int | None, descriptors: int, expected: int
) -> None:
    assert connections(streams=10_000, memory=memory, descriptors=descriptors) == expected


def limit(folder: Path, name: str, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text + "\n")


def test_the_least_limit_of_the_groups_above_counts(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("4:memory:/a/b\n2:cpu,cpuacct:/a\n0::/a/b\n")
    root = tmp_path / "fs"
    assert memory_limit(root, own) is None
    limit(root / "memory" / "a" / "b", "memory.limit_in_bytes", str(2**63 - 4096))
    assert memory_limit(root, own) is None
    limit(root / "unified" / "a", "memory.max", str(512 * MIB))
    limit(root / "unified" / "a" / "b", "memory.max", "max")
    assert memory_limit(root, own) == 512 * MIB
    limit(root / "memory" / "a", "memory.limit_in_bytes", str(256 * MIB))
    assert memory_limit(root, own) == 256 * MIB


def test_a_group_of_a_namespace_is_the_root(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/\n")
    limit(tmp_path / "fs", "memory.max", str(300 * MIB))
    assert memory_limit(tmp_path / "fs", own) == 300 * MIB
    assert memory_limit(tmp_path / "fs", tmp_path / "none") is None
