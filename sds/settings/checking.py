"""Collects the problems of a configuration, for ``--check-config`` of agent and authority.

Owns how problems are collected and reported. Invariants: one problem does not hide the next; each
names its field; a check changes nothing and uses no network.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from sds.errors import CertificateError, ConfigurationError, SdsError
from sds.files import is_folder, is_taken
from sds.outside import words_of
from sds.pki import certificates_from_pem, load_certificate
from sds.settings.yamlfile import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from sds.settings.listen import ListenAddress


class ConfigurationChecks:
    """The problems of one configuration.

    Args:
        what: names the configuration in errors.
        now: when certificates must be valid (aware).
    """

    def __init__(self, what: str, *, now: datetime) -> None:
        self._what = what
        self._now = now
        self._problems: dict[str, str] = {}
        """The field of each problem's text."""

    @contextlib.contextmanager
    def of(self, field: str) -> Iterator[None]:
        """Note an error that the block raises (ours, or of a file) as a problem of this field."""
        try:
            yield
        except (SdsError, OSError, ValueError) as error:
            self.problem(field, words_of(error))

    def problem(self, field: str, words: str) -> None:
        """Note a problem of this field; a block and its field report the same problem once."""
        words = words.removeprefix(f"{field}: ")
        before = self._problems.get(words, "")
        if not before.startswith(field):
            self._problems[words] = field

    def raise_all(self) -> None:
        """End the check, and report all problems at once.

        Raises:
            ConfigurationError: with every problem that was noted, if there was one.
        """
        if self._problems:
            said = (
                words if words.startswith(field) else f"{field}: {words}"
                for words, field in self._problems.items()
            )
            raise ConfigurationError(f"{self._what}: {'; '.join(said)}")

    # --- checks that agent and authority share --------------------------------------------------

    def roots(self, field: str, path: Path) -> None:
        """Check that the file has readable certificates (PEM) and that one of them is valid now."""
        with self.of(field):
            try:
                found = [load_certificate(der) for der in certificates_from_pem(read(path))]
            except CertificateError as error:
                raise ConfigurationError(f"{path}: {error.message}", advice=error.advice) from error
            if all(one.not_valid_after_utc <= self._now for one in found):
                last = max(one.not_valid_after_utc for one in found)
                raise ConfigurationError(
                    f"no certificate in {path} is valid now: the last expired at {last:%FT%TZ}",
                    advice="put the current root into the file, and check this machine's clock",
                )

    def token(self, field: str, path: Path) -> None:
        """Check that the file contains a bearer token."""
        with self.of(field):
            if not read(path).strip():
                raise ConfigurationError(f"{path} is empty", advice="it must contain a token")

    def listeners(self, addresses: Mapping[str, ListenAddress | None]) -> None:
        """Check that listeners share no address, and that their Unix sockets have directories."""
        taken: list[tuple[str, ListenAddress]] = []
        for field, address in addresses.items():
            if address is None:
                continue
            if address.path is not None:
                self._socket_place(field, address.path)
            for other, its in taken:
                if address.meets(its):
                    self.problem(field, f"{address} is the address of {other} too: choose another")
            taken.append((field, address))

    def _socket_place(self, field: str, path: Path) -> None:
        """Check that a Unix socket is or can be made at this path."""
        if not is_folder(path.parent):
            self.problem(field, f"the directory {path.parent} does not exist: make it")
        elif not os.access(path.parent, os.W_OK | os.X_OK):
            self.problem(field, f"{path.parent} is not writable for this user: name another place")
        elif is_taken(path) and not path.is_socket():
            self.problem(field, f"{path} exists and is not a socket: remove it, or name another")

    def replaceable_file(self, field: str, path: Path) -> None:
        """Check that a file can be written at this path, and can replace an existing one."""
        folder = path.parent
        if not is_folder(folder) or not os.access(folder, os.W_OK | os.X_OK):
            self.problem(field, f"{folder} is not a directory that this user may write")
        elif is_folder(path):
            self.problem(field, f"{path} is a directory: name a file")

    def writable_directory(self, field: str, path: Path) -> None:
        """Check that the directory is writable or can be made."""
        with self.of(field):
            existing = path
            while not os.path.exists(existing) and existing != existing.parent:  # noqa: PTH110  of any name
                existing = existing.parent
            if not stat.S_ISDIR(existing.stat().st_mode):
                raise ConfigurationError(f"{existing} is not a directory", advice="name another")
            if not os.access(existing, os.W_OK | os.X_OK):
                raise ConfigurationError(
                    f"{existing} is not writable for this user",
                    advice="give it to the user, or name another directory",
                )
