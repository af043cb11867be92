"""The agent's copy of the policy: later epochs reach `sds admission`, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from sds.agent.config import AgentConfig
from sds.clock import SystemClock
from sds.errors import ConfigurationError
from sds.policy.holder import PolicyHolder
from sds.policy.policy_copy import PolicyCopy, follow_copy
from sds.policy.reload import PolicyFiles
from sds.policy.succession import PolicySuccession
from sds.settings import yamlfile
from tests.support.policies import DOMAIN, Signatory, document, sign, trusting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

ALICE, MALLORY = Signatory("alice"), Signatory("mallory")


def epoch(number: int, by: Signatory = ALICE) -> bytes:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    return sign(document(number, not_after=later), by)


def holder() -> PolicyHolder:
    start = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(ALICE))
    return PolicyHolder(start, clock=SystemClock())


@contextlib.asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


async def test_only_what_is_learnt_later_is_copied(tmp_path: Path) -> None:
    place = tmp_path / "policy.json"
    agent = holder()
    agent.take(epoch(3), origin="file")
    # After a restart the agent has its file's epoch, and the copy may be newer.
    place.write_bytes(epoch(7))
    before = place.read_bytes()
    async with running(PolicyCopy(place, agent).run()):
        await asyncio.sleep(0)
        agent.take(epoch(2), origin="authority")
        assert place.read_bytes() == before
        agent.take(epoch(8), origin="authority")
        while place.read_bytes() == before:
            await asyncio.sleep(0.01)
    assert place.read_bytes() == agent.document
    assert place.stat().st_mode & 0o777 == 0o644


async def test_a_disk_that_stays_full_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sds.policy.policy_copy._AGAIN_SECONDS", 0.01)
    caplog.set_level("INFO", "sds.policy.policy_copy")
    place, agent, tried = tmp_path / "policy.json", holder(), [0]

    def full(*_: object, **__: object) -> None:
        tried[0] += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with asyncio.timeout(10), running(PolicyCopy(place, agent).run()):
        with monkeypatch.context() as patched:
            patched.setattr("sds.policy.policy_copy.replace_file", full)
            await asyncio.sleep(0)
            agent.take(epoch(8), origin="authority")
            while tried[0] < 5:
                await asyncio.sleep(0.01)
        while not place.exists():
            await asyncio.sleep(0.01)
    said = [one.getMessage() for one in caplog.records]
    assert [one for one in said if "No space left" in one] == said[:1]


async def test_a_copy_that_hangs_keeps_no_policy_from_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, begun, agent = threading.Event(), threading.Event(), holder()
    (tmp_path / "signed.json").write_bytes(epoch(8))
    files = PolicyFiles(tmp_path / "signed.json", agent, clock=SystemClock())

    def hang(*_: object, **__: object) -> None:
        begun.set()
        answers.wait()

    monkeypatch.setattr("sds.policy.policy_copy.replace_file", hang)
    try:
        async with asyncio.timeout(10), running(PolicyCopy(tmp_path / "copy", agent).run()):
            await asyncio.sleep(0)
            agent.take(epoch(3), origin="authority")
            while not begun.is_set():
                await asyncio.sleep(0.01)
            async with running(files.follow()):
                files.ask()
                while agent.epoch != 8:
                    await asyncio.sleep(0.01)
    finally:
        answers.set()


class _Quick(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.005)


async def test_who_follows_takes_later_epochs_and_trusts_no_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, admission = tmp_path / "policy.json", holder()
    admission.take(epoch(3), origin="file")

    async def until_said(text: str) -> None:
        while text not in caplog.text:
            await asyncio.sleep(0.01)

    async with running(follow_copy(place, admission, clock=_Quick())):
        await asyncio.sleep(0.05)
        assert not caplog.records, "a copy that is missing is no fault"
        for content, why in (
            (epoch(9, by=MALLORY), "no signature of the policy is valid"),
            (b"x" * 1000, "is not a signed policy"),
            (epoch(2), "was already seen"),
        ):
            place.write_bytes(content)
            await until_said(why)
            assert admission.epoch == 3
        place.write_bytes(epoch(5))
        while admission.epoch != 5:
            await asyncio.sleep(0.01)
        place.unlink()
        place.mkdir()
        await until_said("what is in force stays")
        await asyncio.sleep(0.05)
        assert caplog.text.count("what is in force stays") == 1
        caplog.set_level("INFO")
        place.rmdir()
        await until_said("the agent's copy of the policy can be read again")
    assert admission.epoch == 5


async def test_a_copy_that_comes_too_early_counts_from_its_time_on(tmp_path: Path) -> None:
    """Before, who follows stayed with the epoch before it until the file changed."""
    place = tmp_path / "policy.json"
    soon = datetime.now(UTC) + timedelta(seconds=0.5)
    fields = {"not_before": soon.isoformat(), "not_after": (soon + timedelta(hours=1)).isoformat()}
    place.write_bytes(sign(document(9, **fields), ALICE))
    admission = holder()
    admission.take(epoch(3), origin="file")
    async with running(follow_copy(place, admission, clock=_Quick())), asyncio.timeout(20):
        while admission.last_error is None:
            await asyncio.sleep(0.01)
        while admission.epoch != 9:
            await asyncio.sleep(0.01)


def test_a_copy_needs_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(
        "trust_domain: example.org\nrun_dir: /run/sds\nauthority: {addresses: ['a:1']}\n"
        "policy_copy: /run/sds/policy.json\n"
    )
    with pytest.raises(ConfigurationError, match="policy_copy: there is no policy to copy"):
        yamlfile.load_file(file, AgentConfig)


def test_a_place_that_cannot_be_written_is_an_error_of_the_start(tmp_path: Path) -> None:
    """The first change of policy may be months away."""
    PolicyCopy(tmp_path / "policy.json", holder()).require()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place, why in (
        ("none/policy.json", "No such file or directory"),
        ("folder", "Is a directory"),
        ("file/policy.json", "Permission denied|Not a directory"),
    ):
        with pytest.raises(ConfigurationError, match=f"policy_copy: .*{place} cannot be.*({why})"):
            PolicyCopy(tmp_path / place, holder()).require()
