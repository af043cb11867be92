"""The issuers of a TPM's endorsement certificate, from a folder that an operator fills.

Owns :class:`IssuerFolder`. Invariants: at the start every file must be usable, and an error names
the one that is not; while the program runs, a file that cannot be used does not affect the others:
its earlier content stays in force, and the fault is logged once and counted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sds import faults
from sds.attestation.pem import der_certificates
from sds.errors import CertificateError, ConfigurationError, EvidenceError
from sds.files import is_folder, read_file
from sds.pki.chain import load_certificate
from sds.problems import Problems
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOGGER = logging.getLogger(__name__)
_MOST_BYTES: Final = 64 * 1024
MOST_FILES: Final = 16
_FIELD: Final = "attestation.certificates"
_UNUSABLE: Final = (OSError, EvidenceError, CertificateError)


class IssuerFolder:
    """The certificates in the files of one folder, in PEM or DER."""

    def __init__(self, folder: Path) -> None:
        """Read nothing yet."""
        self._folder = folder
        self._kept: dict[Path, tuple[bytes, ...]] = {}
        self._problems = Problems()

    def require(self) -> None:
        """Read every file. It blocks.

        Raises:
            ConfigurationError: the folder or one of its files cannot be used, or there are more
                than :data:`MOST_FILES`.
        """
        path = self._folder
        try:
            for path in self._files():
                self._kept[path] = _read(path)
        except _UNUSABLE as error:
            raise ConfigurationError(
                f"{_FIELD}: {path} cannot be used: {words_of(error)}",
                advice="put only certificates of the TPM's manufacturer into the folder",
            ) from error

    def certificates(self) -> list[bytes]:
        """Return the certificates as the files have them now, in DER. It blocks."""
        try:
            files = self._files()
        except OSError as error:
            self._failed(self._folder, error)
            return [der for kept in self._kept.values() for der in kept]
        self._over(self._folder)
        self._kept = {path: der for path, der in self._kept.items() if path in files}
        return [der for path in files for der in self._now(path)]

    def _now(self, path: Path) -> tuple[bytes, ...]:
        try:
            self._kept[path] = _read(path)
        except _UNUSABLE as error:
            self._failed(path, error)
        else:
            self._over(path)
        return self._kept.get(path, ())

    def _files(self) -> list[Path]:
        """Return the files, sorted.

        Raises:
            OSError: the folder cannot be read, or has too many.
        """
        found = sorted(_files_of(self._folder))
        if len(found) > MOST_FILES:
            raise OSError(f"it has {len(found)} files, and at most {MOST_FILES} are read")
        return found

    def _over(self, path: Path) -> None:
        if self._problems.over(of=path):
            _LOGGER.info("%s: %s can be used again", _FIELD, path, extra={"path": str(path)})

    def _failed(self, path: Path, error: Exception) -> None:
        faults.count("certificate file")
        why = words_of(error)
        if self._problems.is_news(why, of=path):
            _LOGGER.error(
                "%s: %s cannot be used, what was read before stays: %s",
                _FIELD,
                path,
                why,
                extra={"path": str(path)},
            )


def _files_of(folder: Path) -> Iterator[Path]:
    """Yield everything but folders: Kubernetes keeps its versions of a volume in folders."""
    for path in folder.iterdir():
        if not is_folder(path):
            yield path


def _read(path: Path) -> tuple[bytes, ...]:
    """Return the certificates of one file, each of which can be parsed."""
    found = der_certificates(read_file(path, max_bytes=_MOST_BYTES), what=path.name)
    for der in found:
        load_certificate(der, path.name)
    return found
