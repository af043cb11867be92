"""The admission service remembers the policy in force, even if the disk is full for a while."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from sds.admission.memory_file import Memory, MemoryFile
from sds.admission.policy_memory import PolicyMemory
from sds.policy.succession import PolicySuccession, offer
from tests.support.clock import PauseCounter
from tests.support.policies import DOMAIN, NOW, Signatory, document, sign, trusting

if TYPE_CHECKING:
    from pathlib import Path


@dataclasses.dataclass
class InForce:
    epoch: int = 0
    digest: bytes = b""
    document: bytes = b""


class FullDisk:
    """Refuses the first few writes."""

    def __init__(self, file: MemoryFile, failures: int, error: Exception | None = None) -> None:
        self.file = file
        self.failures = failures
        self.error = error or OSError(errno.ENOSPC, "No space left on device")
        self.written = asyncio.Event()

    def write(self, memory: Memory) -> None:
        if self.failures:
            self.failures -= 1
            raise self.error
        self.file.write(memory)
        self.written.set()


async def test_a_policy_that_cannot_be_written_is_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else has to happen for that: no admission, no other policy."""
    file, clock, policy = MemoryFile(tmp_path), PauseCounter(), InForce()
    disk = FullDisk(file, 5)
    kept = PolicyMemory(policy, Memory(), disk, clock=clock)
    kept.keep()
    assert not file.read().seen
    policy.epoch, policy.digest, policy.document = 7, b"d" * 32, b"signed"
    kept.keep()
    assert not file.read().seen
    running = asyncio.create_task(kept.run())
    await disk.written.wait()
    running.cancel()
    found = file.read()
    assert found.seen is not None
    assert (found.seen.number, found.policy) == (7, b"signed")
    assert len(clock.pauses) == 5
    assert caplog.text.count("cannot be remembered") == 1
    # What is written is not written again.
    disk.written.clear()
    kept.keep()
    assert not disk.written.is_set()


async def test_a_policy_at_which_writing_fails_unexpectedly_is_written_later(
    tmp_path: Path,
) -> None:
    """Before, it counted as written, and the next start accepted an older policy."""
    file, policy = MemoryFile(tmp_path), InForce(7, b"d" * 32, b"signed")
    disk = FullDisk(file, 1, MemoryError())
    kept = PolicyMemory(policy, Memory(), disk, clock=PauseCounter())
    with pytest.raises(MemoryError):
        kept.keep()
    running = asyncio.create_task(kept.run())
    await disk.written.wait()
    running.cancel()
    assert file.read().seen is not None


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    MemoryFile(tmp_path).write(Memory(policy=b"signed"))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert MemoryFile(tmp_path).read().policy == b"signed"


def test_a_policy_that_has_ended_still_says_who_signs_after_it(tmp_path: Path) -> None:
    """A restart does not give the right back to a key that the remembered policy took it from."""
    alice, bob = Signatory("alice"), Signatory("bob")
    signers = {"threshold": 1, "keys": [{"name": "bob", "public_key": bob.public.pem}]}
    turn = sign(document(4, signers=signers, not_after="2026-02-01T00:00:00Z"), alice, bob)
    configured = PolicySuccession(trust_domain=DOMAIN, trusted=trusting(alice))
    running, _ = offer(configured, [turn], now=datetime(2026, 1, 15, tzinfo=UTC))
    MemoryFile(tmp_path).write(Memory(seen=running.seen, policy=running.handover))
    start = MemoryFile(tmp_path).read().floor(configured)
    stolen, next_one = sign(document(5), alice), sign(document(5), bob)
    for state in (running, start):
        _, outcome = offer(state, [stolen], now=NOW)
        assert outcome.refusal is not None
        assert outcome.refusal.reason == "policy_unsigned"
        assert offer(state, [next_one], now=NOW)[1].taken is not None
    # What is remembered is nothing that these keys signed: the epoch alone counts.
    odd = Memory(seen=running.seen, policy=b"signed").floor(configured)
    assert odd == dataclasses.replace(configured, seen=running.seen)
