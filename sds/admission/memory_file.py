"""Keeps what the service needs after a restart: the newest policy, and the running sandboxes.

Owns the file ``memory.json`` in a directory that only root can enter. Invariants: a sandbox counts
only after it was written; a policy that cannot be written is in force, and an error is logged; a
file that cannot be read ends the start, because forgetting would let an older policy in, so none is
written that is too long to be read; the file contains nothing secret. If the directory is in
memory, the file lasts until the guest ends; after that, the policy's ``not_after`` and
``min_epoch`` bound a rollback (docs/policy.md).
"""

from __future__ import annotations

import base64
import errno
import json
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from sds.admission.judge import AdmittedContainer, AdmittedSandbox
from sds.errors import ConfigurationError, PolicyError
from sds.files import read_file, replace_file
from sds.policy.succession import resumed, split
from sds.policy.trust import Epoch
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from pathlib import Path

    from sds.policy.succession import PolicySuccession

_FORMAT: Final = 1
_MAX_BYTES: Final = 64 << 20
"""The largest file: a signed policy in base64, and what is remembered of each sandbox."""
MOST_BYTES_OF_A_SANDBOX: Final = 128 << 10
"""The most of a sandbox that no rule bounds: so much of several hundred is still read again."""


@dataclass(slots=True, kw_only=True)
class Memory:
    """Everything that is remembered.

    Attributes:
        seen: the newest epoch that was ever in force here.
        policy: the signed policies that lead to that epoch.
        sandboxes: the admitted sandboxes, by ID.
    """

    seen: Epoch | None = None
    policy: bytes = b""
    sandboxes: dict[str, AdmittedSandbox] = field(default_factory=dict)

    def floor(self, start: PolicySuccession) -> PolicySuccession:
        """Return the initial state: neither older policies nor former signers are accepted.

        The signers of later epochs count although the policy that named them may have ended.
        """
        try:
            remembered = split(self.policy)
        except PolicyError:
            return replace(start, seen=self.seen)
        return resumed(start, remembered, seen=self.seen)


class MemoryFile:
    """Reads and writes the file. ``folder`` is a directory that only this user can enter."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "memory.json"

    def read(self) -> Memory:
        """Read what the last write stored; return an empty memory before the first one.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        try:
            found = json.loads(read_file(self._path, max_bytes=_MAX_BYTES))
            if found["format"] != _FORMAT:
                raise ValueError(f"its format is {found['format']!r}")  # noqa: TRY301
            return Memory(
                seen=_epoch(found["seen"]),
                policy=base64.b64decode(found["policy"], validate=True),
                sandboxes={key: _sandbox(value) for key, value in found["sandboxes"].items()},
            )
        except FileNotFoundError:
            return Memory()
        except (
            AttributeError,
            LookupError,
            OSError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise ConfigurationError(
                f"{self._path} cannot be used: {words_of(error)}",
                advice="this file keeps old policies out: restart the guest, or remove the file "
                "on purpose",
            ) from error

    def write(self, memory: Memory) -> None:
        """Replace the file by one with this content.

        Raises:
            OSError: the file cannot be written, or would be too long to be read again.
        """
        seen = memory.seen
        document = {
            "format": _FORMAT,
            "seen": None if seen is None else [seen.number, seen.digest.hex()],
            "policy": base64.b64encode(memory.policy).decode(),
            "sandboxes": {key: _plain(value) for key, value in memory.sandboxes.items()},
        }
        content = json.dumps(document).encode()
        if len(content) > _MAX_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        replace_file(self._path, content, mode=0o600)


def is_bounded(sandbox: AdmittedSandbox) -> bool:
    """Say whether a sandbox takes little of the file, although no rule bounds what is in it."""
    return len(json.dumps(_plain(sandbox))) <= MOST_BYTES_OF_A_SANDBOX


def _epoch(found: Any) -> Epoch | None:
    if found is None:
        return None
    number, digest = found
    return Epoch(number=int(number), digest=bytes.fromhex(digest))


def _plain(sandbox: AdmittedSandbox) -> list[Any]:
    containers = {
        key: [each.name, each.digest, list(each.unmeasured)]
        for key, each in sandbox.containers.items()
    }
    return [
        *(sandbox.pod_uid, sandbox.digest, list(sandbox.unmeasured), sandbox.pid_file),
        *(sandbox.admitted_at, containers),
    ]


def _sandbox(found: list[Any]) -> AdmittedSandbox:
    pod_uid, digest, unmeasured, pid_file, admitted_at, containers = found
    return AdmittedSandbox(
        pod_uid=str(pod_uid),
        digest=str(digest),
        unmeasured=tuple(map(str, unmeasured)),
        pid_file=str(pid_file),
        admitted_at=float(admitted_at),
        containers={
            str(key): AdmittedContainer(
                name=str(name), digest=str(one), unmeasured=tuple(map(str, more))
            )
            for key, (name, one, more) in containers.items()
        },
    )
