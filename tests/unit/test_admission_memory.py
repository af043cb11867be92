"""The admission service remembers the policy in force, even if the disk is full for a while."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
from typing import TYPE_CHECKING

from sds.admission.memory import Memory, MemoryFile
from sds.admission.policy_memory import PolicyMemory
from tests.support.clock import PauseCounter

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


@dataclasses.dataclass
class InForce:
    epoch: int = 0
    digest: bytes = b""
    document: bytes = b""


class FullDisk:
    """Refuses the first few writes."""

    def __init__(self, file: MemoryFile, failures: int) -> None:
        self.file = file
        self.failures = failures
        self.written = asyncio.Event()

    def write(self, memory: Memory) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
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


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    MemoryFile(tmp_path).write(Memory(policy=b"signed"))
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert MemoryFile(tmp_path).read().policy == b"signed"
