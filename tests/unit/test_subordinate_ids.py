"""A user with subordinate IDs is one owner, not 65,536."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING

import pytest

from sds import subordinate_ids
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
        # Those who share IDs are one owner.
        (b"a:10:5\nb:12:10\nc:22:1", [(10, 21, "uid 10-21"), (22, 22, "uid 22-22")]),
        # So is one who has several ranges, and those who share IDs with one of them.
        (b"a:40:5\na:10:5\nb:20:5", [(10, 14, "A"), (20, 24, "uid 20-24"), (40, 44, "A")]),
        (b"a:10:5\nb:12:2\nb:20:5\nc:24:9", [(10, 14, "A"), (20, 32, "A")]),
        (b"c:50:5\nb:40:5\na:10:5\na:41:1\nb:50:1", [(10, 14, "A"), (40, 44, "A"), (50, 54, "A")]),
        (b"root:0:4294967295\n0:1:10\na:7:2\n", [(7, 8, "uid 7-8")]),  # root needs no other's ID
        (b"kubelet:65536:7208960\ncontainers:10000000:65536\n", []),  # many pods' and containers'
        (b"# a:1:2\n", [(1, 2, "uid 1-2")]),
        (b"a:1\na:1:0\na:-1:5\na:x:5\n:1:5\na:1:5:6\na:99999999999:5\n\xff\n", []),
        (b"\xff:1:2\r\nb:5:1  \n", [(5, 5, "uid 5-5")]),
    ],
)
def test_ranges_are_read_and_what_cannot_be_understood_delegates_nothing(
    content: bytes, expected: list[tuple[int, int, str]]
) -> None:
    found = [(*ids, owner.replace("uid 10-14", "A")) for *ids, owner in delegated_ranges(content)]
    assert found == expected


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


def test_what_the_file_said_counts_while_no_descriptor_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "subuid"
    file.write_text("alice:100000:65536\n")
    ids = SubordinateIds(file)
    assert ids.owner(100_001) == "uid 100000-165535"
    file.write_text("bob:300000:65536\nalice:100000:65536\n")
    with monkeypatch.context() as patched:
        patched.setattr(subordinate_ids, "read_file", no_descriptor)
        assert ids.owner(100_001) == "uid 100000-165535"
    assert ids.owner(300_001) == "uid 300000-365535"


def no_descriptor(*_: object, **__: object) -> bytes:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
