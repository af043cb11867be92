"""How many connections an authority takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sds.ca.capacity import between_looks, connections, memory_limit
from sds.operations.places import most_connections

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("memory", "descriptors", "listeners", "expected"),
    [
        (None, 1_000_000, 3, 10_064),
        (256 * MIB, 1_000_000, 3, 768),
        (64 * MIB, 1_000_000, 0, 256),
        (512 * MIB, 1_000_000, 0, 4864),
        (8192 * MIB, 1_000_000, 0, 10_064),
        (None, 1024, 0, 448),
        (None, 1024, 3, 250),
        (None, 100, 3, 1),
    ],
)
def test_memory_and_descriptors_bound_connections(
    memory: int | None, descriptors: int, listeners: int, expected: int
) -> None:
    found = connections(streams=10_000, memory=memory, descriptors=descriptors, listeners=listeners)
    assert found == expected


@pytest.mark.parametrize("descriptors", [1024, 4096, 65_536])
def test_full_listeners_leave_descriptors_for_files(descriptors: int) -> None:
    """Connections, those between two looks, and three small listeners that somebody filled."""
    most = connections(streams=100_000, memory=None, descriptors=descriptors, listeners=3)
    full = most + between_looks(most) + 3 * most_connections(descriptors)
    assert descriptors - full >= 128


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
