"""Follows the file with the roots of an authority's TLS certificate.

Owns which of its contents is in force. Invariants: if the file cannot be used at the start, nothing
starts; afterwards it is read for each use, outside the event loop; if it cannot be used or does not
answer within :data:`ANSWER_SECONDS`, the earlier content stays in force and the problem is logged
once; a file system that hangs takes one thread.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.errors import CertificateError, ConfigurationError
from sds.pki import certificates_from_pem, load_certificate, plain_pem
from sds.problems import Problems
from sds.settings.yamlfile import read
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from pathlib import Path

_LOGGER = logging.getLogger(__name__)
ANSWER_SECONDS: Final = 5.0


def read_roots(path: Path) -> bytes:
    """Read a file of roots in PEM, and return them in the form that every library reads.

    Raises:
        ConfigurationError: the file cannot be read, has no certificate, or has one that cannot be
            read.
    """
    pem = read(path)
    try:
        for der in certificates_from_pem(pem, what=str(path)):
            load_certificate(der, f"certificate in {path}")
        return plain_pem(pem, what=str(path))
    except CertificateError as error:
        raise ConfigurationError(error.message, advice=error.advice) from error


class RootFile:
    """The roots in one file.

    Raises:
        ConfigurationError: as for :func:`read_roots`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pem = read_roots(path)
        self._problems = Problems()
        self._reading = threads.Lone("authority-root", lambda: read_roots(path))

    async def current(self) -> bytes:
        """Return the file's content now, or the last content that could be used, in PEM."""
        try:
            pem = await self._reading.run(seconds=ANSWER_SECONDS)
        except TimeoutError:
            self._say(ConfigurationError(f"{self._path} does not answer"))
            return self._pem
        except ConfigurationError as error:
            self._say(error)
            return self._pem
        except RuntimeError as error:  # the system gives no thread now
            self._say(ConfigurationError(f"{self._path} cannot be read: {words_of(error)}"))
            return self._pem
        if pem != self._pem:
            _LOGGER.info(
                "the roots of the authority's TLS changed", extra={"path": str(self._path)}
            )
        self._pem = pem
        if self._problems.over():
            _LOGGER.info(
                "the roots of the authority's TLS can be used again",
                extra={"path": str(self._path)},
            )
        return pem

    def _say(self, error: ConfigurationError) -> None:
        if self._problems.is_news(error):
            _LOGGER.error(
                "the roots of the authority's TLS cannot be used, those that were read before "
                "stay in force: %s",
                error,
                extra={"reason": error.reason},
            )
