"""A user with subordinate IDs is one owner, not 65,536."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from sds.subordinate_ids import SubordinateIds, delegated_ranges

if TYPE_CHECKING:
    from pathlib import Path


def test_all_subordinate_ids_of_a_user_are_one_owner(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    file.write_text("alice:100000:65536\n1002:165536:65536\n")
    ids = SubordinateIds(file)
    assert {ids.owner(uid) for uid in range(100_000, 165_536)} == {"uid 100000-165535"}
    assert {ids.owner(uid) for uid in (165_536, 231_071)} == {"uid 165536-231071"}
    assert [ids.owner(uid) for uid in (0, 1002, 99_999, 231_072)] == [
        "uid 0",
        "uid 1002",
        "uid 99999",
        "uid 231072",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a:10:5\nb:12:10\nc:22:1", [(10, 21), (22, 22)]),  # who shares IDs shares a budget
        (b"b:40:5\na:10:5\na:41:1\n", [(10, 14), (40, 44)]),
        (b"root:0:4294967295\n0:1:10\na:7:2\n", [(7, 8)]),  # root needs no other user's ID
        (b"kubelet:65536:7208960\ncontainers:10000000:65536\n", []),  # many pods' and containers'
        (b"# a:1:2\n", [(1, 2)]),
        (b"a:1\na:1:0\na:-1:5\na:x:5\n:1:5\na:1:5:6\na:99999999999:5\n\xff\n", []),
        (b"\xff:1:2\r\nb:5:1  \n", [(5, 5)]),
    ],
)
def test_what_cannot_be_understood_delegates_nothing(
    content: bytes, expected: list[tuple[int, int]]
) -> None:
    assert delegated_ranges(content) == expected


def test_a_changed_file_counts_from_the_next_connection_on(tmp_path: Path) -> None:
    file = tmp_path / "subuid"
    ids = SubordinateIds(file)
    assert ids.owner(100_001) == "uid 100001"
    file.write_text("alice:100000:65536\n")
    assert ids.owner(100_001) == "uid 100000-165535"
    new = tmp_path / "new"
    new.write_text("alice:200000:65536\n")
    os.replace(new, file)  # noqa: PTH105
    assert ids.owner(100_001) == "uid 100001"
    assert ids.owner(200_001) == "uid 200000-265535"
    file.unlink()
    assert ids.owner(200_001) == "uid 200001"


def test_what_cannot_be_read_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "subuid"
    file.mkdir()
    ids = SubordinateIds(file)
    assert [ids.owner(100_001) for _ in range(3)] == ["uid 100001"] * 3
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING
