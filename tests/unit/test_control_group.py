"""The memory that our own control group allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sds.control_group import memory_limit

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024 * 1024


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


def test_any_bytes_may_be_in_a_name(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_bytes(b"0::/a\xff\r0::/b\n")
    limit(tmp_path / "fs", "memory.max", str(300 * MIB))
    assert memory_limit(tmp_path / "fs", own) == 300 * MIB


def test_what_slows_a_process_down_limits_it_too(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    own.write_text("0::/a\n")
    limit(tmp_path / "fs" / "a", "memory.max", str(300 * MIB))
    limit(tmp_path / "fs" / "a", "memory.high", "max")
    assert memory_limit(tmp_path / "fs", own) == 300 * MIB
    limit(tmp_path / "fs", "memory.high", str(200 * MIB))
    assert memory_limit(tmp_path / "fs", own) == 200 * MIB
