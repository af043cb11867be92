"""Generic secrets (API keys, passwords) from memory-backed files, served as they are.

Owns the reading. Invariants: a value never comes from a disk: its file is on a tmpfs or ramfs, or
is an anonymous memory file that was inherited; every file must be usable at the start; afterwards
the files are followed, off the event loop, and one that cannot be used keeps its earlier value and
is logged once; a value is served only to the workload for which it is configured.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.errors import ConfigurationError
from sds.problems import Problems
from sds.secrets.key_memory import SecretBytes
from sds.serving.subscription import WILDCARD
from sds.settings.watching import follow_folders
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sds.clock import Clock
    from sds.secrets.store import SecretStore, Version
    from sds.serving.secret_catalog import Aliases
    from sds.workload.entitlement import Caller

_LOGGER = logging.getLogger(__name__)
MAX_BYTES: Final = 64 * 1024
ANSWER_SECONDS: Final = 5.0
_MEMORY_TYPES: Final = frozenset({"tmpfs", "ramfs"})
_MEMFD: Final = "/memfd:"
_PROC: Final = Path("/proc")
_Key = tuple[str, str]
"""The names of a workload and of its secret."""


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
        self._values: dict[_Key, tuple[Version, SecretBytes]] = {}
        self._asked = asyncio.Event()
        self._problems = Problems()
        """Why a file cannot be used, as it was logged last."""
        self._reading = {
            key: threads.Lone("generic-secret", functools.partial(_read, key, path))
            for key, path in self._places().items()
        }
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
        return tuple(self._files.get(caller.name, ()))

    def current(self, caller: Caller, name: str) -> tuple[Version, bytes] | None:
        found = self._values.get((caller.name, name))
        return None if found is None else (found[0], found[1].reveal())

    def reload(self) -> bool:
        """Read all files again, and say whether any value changed.

        Raises:
            ConfigurationError: as in the constructor; nothing has changed then.
        """
        return self._take({key: _read(key, path) for key, path in self._places().items()})

    def notices(self) -> tuple[str, ...]:
        """Return which files cannot be used now, so that their earlier values are served."""
        return tuple(f"a generic secret stays as it was: {why}" for why in self._problems.now())

    def ask(self) -> None:
        """Read again at once (SIGHUP)."""
        self._problems.tell_again()
        self._asked.set()

    async def follow(self, changed: Callable[[], object], *, clock: Clock) -> None:
        """Read again after every change and every minute, until cancelled."""
        # Descriptors that were inherited have no folder in which the kernel tells of changes.
        folders = {path.parent for path in self._places().values() if _PROC not in path.parents}
        look = functools.partial(self._look, changed)
        await follow_folders(folders, self._asked, look, clock=clock)

    async def _look(self, changed: Callable[[], object]) -> None:
        places = self._places()
        found = await asyncio.gather(*(self._read_again(*place) for place in places.items()))
        fresh = {key: new for key, new in zip(places, found, strict=True) if new is not None}
        if self._take(fresh):
            _LOGGER.info("generic secrets changed")
            changed()

    async def _read_again(self, key: _Key, path: Path) -> SecretBytes | None:
        """Return what a file contains now, or nothing if it cannot be read."""
        workload, name = key
        try:
            fresh = await self._reading[key].run(seconds=ANSWER_SECONDS)
        except ConfigurationError as error:
            self._failed(key, error)
            return None
        except (TimeoutError, RuntimeError) as error:  # RuntimeError: no thread can start now
            said = f"generic_secrets.{name} of the workload {workload}: {path} cannot be read"
            self._failed(key, ConfigurationError(f"{said}: {words_of(error)}"))
            return None
        if self._problems.over(of=key):
            _LOGGER.info(
                "a generic secret can be read again: %s", name, extra={"workload": workload}
            )
        return fresh

    def _failed(self, key: _Key, error: ConfigurationError) -> None:
        if self._problems.is_news(error, of=key):
            _LOGGER.error(
                "a generic secret cannot be read again, its value stays as it was: %s",
                error,
                extra={"workload": key[0], "reason": error.reason},
            )

    def _places(self) -> dict[_Key, Path]:
        return {
            (workload, name): path
            for workload, named in self._files.items()
            for name, path in named.items()
        }

    def _take(self, fresh: Mapping[_Key, SecretBytes]) -> bool:
        """Serve these values from now on, and say whether any changed."""
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


def _read(key: _Key, path: Path) -> SecretBytes:
    """Return the file's content; an error names the field of the configuration."""
    workload, name = key
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
