"""Collects the problems of a configuration, for ``--check-config`` of agent and authority.

Owns how problems are collected and reported. Invariants: one problem does not hide the next; each
names its field; a check changes nothing and uses no network.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from sds.errors import CertificateError, ConfigurationError, SdsError
from sds.files import check_replaceable, is_folder, is_taken
from sds.pki import certificates_from_pem, load_certificate
from sds.settings.yamlfile import read
from sds.unix_sockets import is_left_over
from sds.untrusted_input import words_of

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
        self._problems: dict[str, list[str]] = {}
        """The fields that have a problem, by its text."""

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
        fields = self._problems.setdefault(words, [])
        if not any(_is_within(one, field) for one in fields):
            fields[:] = [*(one for one in fields if not _is_within(field, one)), field]

    def raise_all(self) -> None:
        """End the check, and report all problems at once.

        Raises:
            ConfigurationError: with every problem that was noted, if there was one.
        """
        if self._problems:
            said = (
                words if words.startswith(field) else f"{field}: {words}"
                for words, fields in self._problems.items()
                for field in fields
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
            spans = [(one.not_valid_before_utc, one.not_valid_after_utc) for one in found]
            if not any(begins <= self._now < ends for begins, ends in spans):
                begins, ends = max(spans, key=lambda span: span[1])
                raise ConfigurationError(
                    f"no certificate in {path} is valid now: the last is valid from "
                    f"{begins:%FT%TZ} to {ends:%FT%TZ}",
                    advice="put the current root into the file, and check this machine's clock",
                )

    def token(self, field: str, path: Path) -> None:
        """Check that the file contains a bearer token."""
        with self.of(field):
            words = read(path).split()
            if not words:
                raise ConfigurationError(f"{path} is empty", advice="it must contain a token")
            if len(words) > 1 or not words[0].isascii():
                raise ConfigurationError(
                    f"{path} is not one word of ASCII characters", advice="it must contain a token"
                )

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

    def kubernetes_server(self, field: str, *, roots: Path | None, token: Path | None) -> None:
        """Check the files by which a kubelet or an API server is asked.

        Args:
            field: the server's block.
            roots: verify its certificate; None if nothing does.
            token: the file with our bearer token; None without one.
        """
        if roots is not None:
            self.roots(f"{field}.ca_file", roots)
        if token is not None:
            self.token(f"{field}.token_file", token)

    def _socket_place(self, field: str, path: Path) -> None:
        """Check that a Unix socket is or can be made at this path."""
        if not self._is_writable(field, path.parent) or path.is_socket() or is_left_over(path):
            return
        if is_taken(path):
            self.problem(field, f"{path} exists and is not a socket: remove it, or name another")

    def replaceable_file(self, field: str, path: Path) -> None:
        """Check that a file can be written at this path, and can replace an existing one."""
        if not self._is_writable(field, path.parent):
            return
        try:
            check_replaceable(path)
        except IsADirectoryError:
            self.problem(field, f"{path} is a directory: name a file")
        except OSError as error:
            self.problem(field, f"{path} cannot be replaced: {error.strerror}")

    def writable_directory(self, field: str, path: Path) -> None:
        """Check that the directory is writable or can be made."""
        existing = path
        while not is_taken(existing) and existing != existing.parent:
            existing = existing.parent
        self._is_writable(field, existing)

    def existing_directory(self, field: str, path: Path) -> None:
        """Check that the directory is there already, because others make it, and is writable."""
        self._is_writable(field, path)

    def _is_writable(self, field: str, folder: Path) -> bool:
        """Return whether this user may write the directory; note a problem if not."""
        if not is_folder(folder):
            self.problem(field, f"{folder} is not a directory: make it, or name another")
        elif not os.access(folder, os.W_OK | os.X_OK):
            self.problem(
                field,
                f"{folder} is not writable for this user: give it to the user, or name another",
            )
        else:
            return True
        return False


def _is_within(field: str, block: str) -> bool:
    return field.startswith(block) and field[len(block) :][:1] in {"", ".", "["}
