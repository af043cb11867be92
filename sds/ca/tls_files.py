"""Reads the authority's TLS identity from an operator's files, and follows them.

Owns following ``tls.certificate`` and ``tls.key``. Invariants: if they cannot be used at the start,
nothing starts; afterwards the two count only together (one that is replaced before the other
changes nothing); if they cannot be used, the earlier identity stays in force and the problem is
logged once; new connections get a new identity, and open ones stay.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from sds import threads
from sds.ca.tls import TlsIdentity, tls_from_files
from sds.errors import ConfigurationError
from sds.problems import Problems
from sds.settings.watching import follow_folders

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from sds.clock import Clock
    from sds.transport.tls_settings import ServerTlsSettings

_LOGGER = logging.getLogger(__name__)
_ANSWER_SECONDS: Final = 30.0


class FollowedTls:
    """A :class:`sds.ca.tls.ServerTls` that follows two files.

    Args:
        certificate: the PEM file with the chain, leaf first.
        key: the PEM file with its key.
        clock: time.

    Raises:
        ConfigurationError: as for :func:`sds.ca.tls.tls_from_files`.
    """

    def __init__(self, certificate: Path, key: Path, *, clock: Clock) -> None:
        self._certificate = certificate
        self._key = key
        self._clock = clock
        self._current = self._read()
        self._asked = asyncio.Event()
        self._problems = Problems()

    @property
    def key_digest(self) -> bytes:
        return self._current.key_digest

    @property
    def not_after(self) -> datetime:
        return self._current.not_after

    def settings(self) -> ServerTlsSettings:
        """Return the settings of the server side, by the files as they were read last."""
        return self._current.settings()

    def ask(self) -> None:
        """Read again at once (SIGHUP)."""
        self._problems.tell_again()
        self._asked.set()

    async def follow(self) -> None:
        """Read again after every change and every minute, until cancelled."""
        folders = {self._certificate.parent, self._key.parent}
        await follow_folders(folders, self._asked, self.look, clock=self._clock)

    async def look(self) -> None:
        """Read the files, and take what can be used."""
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                found = await threads.TLS_FILES.run(self._read)
        except ConfigurationError as error:
            self._say(error)
            return
        except TimeoutError:
            self._say(ConfigurationError(f"{self._certificate} or its key does not answer"))
            return
        if self._problems.over():
            _LOGGER.info(
                "the TLS certificate can be used again",
                extra={"not_after": found.not_after.isoformat()},
            )
        if found != self._current:
            self._current = found
            _LOGGER.info(
                "new connections get a new TLS certificate",
                extra={"not_after": found.not_after.isoformat(), "tls_key": found.key_digest.hex()},
            )

    def _say(self, error: ConfigurationError) -> None:
        if self._problems.is_news(error):
            _LOGGER.error(
                "the TLS certificate cannot be used, the one that was read before stays in force "
                "until %s: %s",
                self.not_after.isoformat(),
                error,
                extra={"reason": error.reason},
            )

    def _read(self) -> TlsIdentity:
        return tls_from_files(self._certificate, self._key, now=self._clock.now().wall)
