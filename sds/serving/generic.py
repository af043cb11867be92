"""Generic secrets (API keys, passwords) from memory-backed files, served as they are.

Owns the reading. Invariants: a value never comes from a disk: its file is on a tmpfs or ramfs, or
is an anonymous memory file that was inherited; the file is read at the start and at a reload, and
never written; a value is served only to the workload for which it is configured.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds.errors import ConfigurationError
from sds.secrets.memory import SecretBytes
from sds.serving.subscription import WILDCARD

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sds.secrets.store import SecretStore, Version
    from sds.serving.catalog import Aliases
    from sds.workload.entitlement import Caller

MAX_BYTES: Final = 64 * 1024
_MEMORY_TYPES: Final = frozenset({"tmpfs", "ramfs"})
_MEMFD: Final = "/memfd:"


class GenericSecretFiles:
    """Generic secrets of each workload, from files in memory.

    Args:
        store: draws versions.
        files: workload name -> secret name -> file.
        aliases: the names that are already taken.
    """

    def __init__(
        self,
        store: SecretStore,
        *,
        files: Mapping[str, Mapping[str, Path]],
        aliases: Aliases,
    ) -> None:
        """Read all files.

        Raises:
            ConfigurationError: a file cannot be read, is not in memory or is too large, or a name
                is already taken.
        """
        self._store = store
        self._files = files
        self._values: dict[tuple[str, str], tuple[Version, SecretBytes]] = {}
        for workload, named in files.items():
            for name in named:
                if aliases.is_taken(name) or name == WILDCARD or not name:
                    raise ConfigurationError(
                        f"generic secret {name!r} of workload {workload!r} has the name of "
                        "another secret",
                        advice="choose a name that is neither an alias nor 'inbound' and does not "
                        "begin with 'spiffe://' or 'outbound:'",
                    )
        self.reload()

    def names(self, caller: Caller) -> Collection[str]:
        """Return the names of the secrets that the caller may have."""
        return tuple(self._files.get(caller.name, ()))

    def current(self, caller: Caller, name: str) -> tuple[Version, bytes] | None:
        """Return version and value; None if there is none for the caller."""
        found = self._values.get((caller.name, name))
        return None if found is None else (found[0], found[1].reveal())

    def reload(self) -> bool:
        """Read all files again, and say whether any value changed.

        Raises:
            ConfigurationError: as in the constructor; nothing has changed then.
        """
        fresh = {
            (workload, name): _read(path, name=name, workload=workload)
            for workload, named in self._files.items()
            for name, path in named.items()
        }
        changed = False
        for key, value in fresh.items():
            known = self._values.get(key)
            if known is None or known[1].reveal() != value.reveal():
                self._values[key] = (self._store.draw_version(), value)
                changed = True
                if known is not None:
                    known[1].wipe()
            else:
                value.wipe()
        return changed


def _read(path: Path, *, name: str, workload: str) -> SecretBytes:
    """Return the file's content; an error names the field of the configuration."""
    try:
        return read_memory_file(path)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"generic_secrets.{name} of the workload {workload}: {error.message}",
            advice=error.advice,
        ) from None


def read_memory_file(path: Path) -> SecretBytes:
    """Read a secret from a file that has no disk behind it.

    Raises:
        ConfigurationError: it cannot be read, is not a regular file in memory, is empty or too
            large, or changed meanwhile.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(f"secret file {path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _in_memory(descriptor, status.st_dev):
            raise ConfigurationError(
                f"secret file {path} is not a file in memory",
                advice="put it on a tmpfs (such as /run), or pass a memfd as /proc/self/fd/N",
            )
        if status.st_size > MAX_BYTES:
            raise ConfigurationError(
                f"secret file {path} has {status.st_size} bytes", advice=f"at most {MAX_BYTES}"
            )
        if status.st_size == 0:
            raise ConfigurationError(
                f"secret file {path} is empty",
                advice="write the value beside it and rename it over the file",
            )
        return _content(descriptor, status.st_size, path)
    except OSError as error:
        raise ConfigurationError(f"secret file {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)


def _content(descriptor: int, size: int, path: Path) -> SecretBytes:
    """Return the whole content, and leave no other copy in memory."""
    buffer = bytearray(size)
    try:
        read = os.preadv(descriptor, [buffer], 0)
        if read != size or os.fstat(descriptor).st_size != size:
            raise ConfigurationError(
                f"secret file {path} changed while it was read",
                advice="write the value beside it and rename it over the file",
            )
        return SecretBytes(bytes(buffer))
    finally:
        buffer[:] = bytes(size)


def _in_memory(descriptor: int, device: int) -> bool:
    """Say whether the file has no disk behind it: it is a memfd, or on a tmpfs or ramfs."""
    if str(Path(f"/proc/self/fd/{descriptor}").readlink()).startswith(_MEMFD):
        return True
    wanted = f"{os.major(device)}:{os.minor(device)}".encode()
    # A user who may mount chooses names of directories, so a line may contain any byte but a line
    # feed.
    with Path("/proc/self/mountinfo").open("rb") as mounts:
        for line in mounts:
            fields, _, rest = line.partition(b" - ")
            if fields.split(b" ")[2] == wanted:
                return rest.split(b" ")[0].decode("ascii", "replace") in _MEMORY_TYPES
    return False
