"""Files of policy: every way of replacing one is seen, and nothing but a whole one counts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sds.clock import SystemClock
from sds.errors import ConfigurationError
from sds.policy.holder import PolicyHolder
from sds.policy.reload import PolicyFiles
from sds.policy.settings import PolicySettings
from sds.policy.succession import PolicySuccession
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting
from tests.support.policy_files import deploy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

ALICE = Signatory("alice")
PATIENCE_SECONDS = 20


def epoch(number: int, **fields: Any) -> bytes:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    return sign(document(number, **{"not_after": later, **fields}), ALICE)


def replaced(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


@contextlib.asynccontextmanager
async def following(place: Path) -> AsyncIterator[PolicyFiles]:
    start = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE))
    files = PolicyFiles(place, PolicyHolder(start, clock=SystemClock()), clock=SystemClock())
    files.load()
    task = asyncio.create_task(files.follow())
    try:
        yield files
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


async def until_epoch(files: PolicyFiles, number: int) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while files.holder.epoch != number:
            await asyncio.sleep(0.01)


async def until_said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while text not in caplog.text:
            await asyncio.sleep(0.01)


async def test_a_file_in_all_the_ways_of_replacing_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(epoch(1))
    async with following(path) as files:
        replaced(path, epoch(2))
        await until_epoch(files, 2)
        path.write_bytes(epoch(3))
        await until_epoch(files, 3)
        path.unlink()
        await until_said(caplog, "cannot be read")
        path.write_bytes(epoch(4))
        await until_epoch(files, 4)
        new = epoch(5)
        with path.open("wb") as file:
            file.write(new[:50])
            file.flush()
            await until_said(caplog, "is not a signed policy")
            assert files.holder.epoch == 4
            file.write(new[50:])
        await until_epoch(files, 5)


async def test_a_file_that_cannot_be_read_is_told_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not by the log alone: who looks at the state later must see it."""
    caplog.set_level("INFO")
    path, content = tmp_path / "policy.json", epoch(1)
    path.write_bytes(content)
    async with following(path) as files:
        path.unlink()
        await until_said(caplog, "cannot be read, what is in force stays")
        error = files.holder.last_error
        assert error is not None
        assert error.reason == "policy_unreadable"
        assert str(path) in str(error)
        assert files.holder.epoch == 1
        path.mkdir()
        await until_said(caplog, "has no *.json file")
        path.rmdir()
        path.write_bytes(content)
        await until_said(caplog, "the policy can be read again")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while files.holder.last_error is not None:
                await asyncio.sleep(0.01)


async def test_a_good_file_that_is_put_back_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path, good = tmp_path / "policy.json", epoch(1)
    path.write_bytes(good)
    async with following(path) as files:
        replaced(path, sign(document(2), Signatory("mallory")))
        await until_said(caplog, "refused")
        assert files.holder.last_error is not None
        replaced(path, good)
        await until_said(caplog, f"policy from {path} is good again; epoch 1 stays")
        assert files.holder.last_error is None


async def test_a_mounted_config_map_by_file_and_by_directory(tmp_path: Path) -> None:
    deploy(tmp_path, 1, epoch(1))
    async with (
        following(tmp_path / "policy.json") as by_file,
        following(tmp_path) as by_directory,
    ):
        for number in (2, 3):
            deploy(tmp_path, number, epoch(number))
            await until_epoch(by_file, number)
            await until_epoch(by_directory, number)


async def test_a_directory_offers_all_and_the_highest_wins(tmp_path: Path) -> None:
    for number in (1, 3, 2):
        (tmp_path / f"{number}.json").write_bytes(epoch(number))
    (tmp_path / "notes.txt").write_text("no policy")
    async with following(tmp_path) as files:
        assert files.holder.epoch == 3
        (tmp_path / "4.JSON").write_bytes(epoch(4))
        await until_epoch(files, 4)


@pytest.mark.parametrize("in_folder", [True, False])
async def test_a_key_in_the_place_of_a_policy_is_in_no_log(
    *, in_folder: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n"
    (tmp_path / "1.json").write_bytes(epoch(1))
    async with following(tmp_path if in_folder else tmp_path / "1.json") as files:
        (tmp_path / ("2.json" if in_folder else "1.json")).write_bytes(key)
        await until_said(caplog, "no JSON object")
        assert "c2VjcmV0" not in caplog.text
        assert "c2VjcmV0" not in str(files.holder.last_error)


@pytest.mark.parametrize("name", ["0.json", "9.json"])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (os.mkfifo, "not an ordinary file"),
        (os.mkdir, "directory"),
        (lambda path: path.symlink_to(path), "symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "not an ordinary file"),
        (huge, "larger"),
    ],
    ids=["pipe", "folder", "loop", "device", "huge"],
)
async def test_what_cannot_be_read_takes_nothing_from_the_others(
    name: str,
    make: Callable[[Path], object],
    why: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "1.json").write_bytes(epoch(1))
    make(tmp_path / name)
    async with following(tmp_path) as files:
        assert files.holder.epoch == 1
        assert "refused" in caplog.text
        assert re.search(f"{tmp_path / name}[^\n]*{why}", caplog.text)
        (tmp_path / "2.json").write_bytes(epoch(2))
        await until_epoch(files, 2)
        (tmp_path / name).rename(tmp_path / "elsewhere")
        (tmp_path / name).write_bytes(epoch(9))
        await until_epoch(files, 9)


@pytest.mark.parametrize("name", ["0.json", "9.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"no policy", b"{", b"[1]", b'{"a": [' + b"[]," * 20_000 + b"[]]}", None],
    ids=["empty", "text", "brace", "list", "many fields", "cut short"],
)
async def test_a_file_that_is_none_takes_nothing_from_the_others(
    name: str, content: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy that a full disk cut short stays, and the next start reads it too."""
    (tmp_path / "1.json").write_bytes(epoch(1))
    (tmp_path / name).write_bytes(epoch(9)[:-40] if content is None else content)
    async with following(tmp_path) as files:
        assert files.holder.epoch == 1
        assert "refused" in caplog.text
        assert str(tmp_path / name) in caplog.text
        (tmp_path / "2.json").write_bytes(epoch(2))
        await until_epoch(files, 2)
        (tmp_path / name).write_bytes(epoch(9))
        await until_epoch(files, 9)


async def test_a_policy_of_soon_is_taken_when_its_time_has_come(tmp_path: Path) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    path = tmp_path / "policy.json"
    path.write_bytes(epoch(1) + epoch(2, not_before=soon))
    async with following(path) as files:
        assert files.holder.epoch == 1
        await until_epoch(files, 2)


async def test_asking_reads_again_and_says_a_refusal_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(epoch(2))
    async with following(path) as files:
        replaced(path, epoch(1))
        await until_said(caplog, "was already seen")
        before = caplog.text.count("was already seen")
        files.ask()
        replaced(path, epoch(3))
        await until_epoch(files, 3)
        assert caplog.text.count("was already seen") == before == 1


def test_places_that_cannot_be_read(tmp_path: Path) -> None:
    start = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE))
    holder = PolicyHolder(start, clock=SystemClock())
    for place in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(ConfigurationError):
            PolicyFiles(place, holder, clock=SystemClock()).load()


def test_settings(tmp_path: Path) -> None:
    key = tmp_path / "alice.pub"
    key.write_text(ALICE.public.pem)
    settings = PolicySettings.model_validate({"file": str(tmp_path / "p"), "keys": [str(key)]})
    assert settings.trusted() == trusting(ALICE)
    inline = PolicySettings.model_validate(
        {"directory": str(tmp_path), "keys": [ALICE.public.pem], "min_epoch": 4}
    )
    assert inline.start(DOMAIN).min_epoch == 4
    assert inline.trusted().keys[0].key_id == ALICE.public.key_id
    for bad in (
        {"keys": [str(key)]},
        {"file": "a", "directory": "b", "keys": [str(key)]},
        {"file": "a", "keys": [str(key), "b"]},
        {"file": "a", "keys": []},
    ):
        with pytest.raises(ValueError, match=r"file|threshold|keys"):
            PolicySettings.model_validate(bad)
    for unusable, said in (
        ({"keys": [str(tmp_path / "missing.pub")]}, "cannot be read"),
        ({"keys": [str(key)], "threshold": 2}, "threshold of 2 cannot be reached"),
        ({"keys": [str(key), ALICE.public.pem], "threshold": 1}, "are the same key"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            PolicySettings.model_validate({"file": "a", **unusable}).trusted()
