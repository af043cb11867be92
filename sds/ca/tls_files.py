"""The authority's TLS identity out of an operator's files, which are renewed under it.

Owns following ``tls.certificate`` and ``tls.key``. Invariants: at the start they can be used, or
nothing starts; afterwards the two count only together (one that is replaced before the other
changes nothing); what cannot be used leaves what was read before in force, and is logged once; a
new identity is for new connections, and those that are open stay.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

import grpc

from sds import threads
from sds.ca.tls import TlsIdentity, tls_from_files
from sds.errors import ConfigurationError
from sds.settings.watching import follow_folders

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from pathlib import Path

    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
_ANSWER_SECONDS: Final = 30.0


class FollowedTls:
    """Implements :class:`sds.ca.tls.ServerTls`; see the module.

    Args:
        certificate: PEM file with the chain, leaf first.
        key: PEM file with its key.
        clock: time.

    Raises:
        ConfigurationError: as :func:`sds.ca.tls.tls_from_files`.
    """

    def __init__(self, certificate: Path, key: Path, *, clock: Clock) -> None:
        self._certificate = certificate
        self._key = key
        self._clock = clock
        self._current = self._read()
        self._served = self._current
        """What gRPC was given last."""
        self._asked = asyncio.Event()
        self._said = ""

    @property
    def key_digest(self) -> bytes:
        return self._current.key_digest

    @property
    def not_after(self) -> datetime:
        return self._current.not_after

    def server_credentials(self) -> grpc.ServerCredentials:
        """TLS of the server side: each handshake asks for the identity of now."""
        # gRPC's own words allow None, and its types do not.
        news = cast("Callable[[], grpc.ServerCertificateConfiguration]", self._news)
        return grpc.dynamic_ssl_server_credentials(self._current.configuration(), news)

    def ask(self) -> None:
        """Read again at once (SIGHUP)."""
        self._said = ""
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
        self._said = ""
        if found != self._current:
            self._current = found
            _LOGGER.info(
                "new connections get a new TLS certificate",
                extra={"not_after": found.not_after.isoformat(), "tls_key": found.key_digest.hex()},
            )

    def _say(self, error: ConfigurationError) -> None:
        if str(error) != self._said:
            self._said = str(error)
            _LOGGER.error(
                "the TLS certificate cannot be used, the one that was read before stays in force "
                "until %s: %s",
                self.not_after.isoformat(),
                error,
                extra={"reason": error.reason},
            )

    def _read(self) -> TlsIdentity:
        return tls_from_files(self._certificate, self._key, now=self._clock.now().wall)

    def _news(self) -> grpc.ServerCertificateConfiguration | None:
        """For gRPC, on a thread of its own, at each handshake; None where nothing changed."""
        current = self._current
        if current is self._served:
            return None
        self._served = current
        return current.configuration()
