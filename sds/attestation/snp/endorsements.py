"""The sources of certificates that a section names, and the folder that stores certificates.

Owns their order, and the cache on disk. Invariants: a cache that cannot be used costs requests, but
never evidence; a leaf is stored only once those above it are.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from typing import TYPE_CHECKING

from sds import threads
from sds.attestation.snp.sources import ANSWER_SECONDS, DirectoryEndorsements, EndorsedAttester
from sds.errors import ConfigurationError, EndorsementUnavailableError
from sds.files import is_folder, replace_file
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.evidence import Attester
    from sds.attestation.settings import AttestationSection
    from sds.attestation.snp.report import Report
    from sds.attestation.snp.sources import Endorsements
    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)


class KeptEndorsements:
    """Stores another source's certificates in a folder: they are public, and outlive a restart.

    Args:
        inner: the source.
        folder: has one file for each leaf; it is made for the first one.
    """

    def __init__(self, inner: Endorsements, folder: Path) -> None:
        self._inner = inner
        self._folder = folder
        self._kept = DirectoryEndorsements(folder, readers=threads.KEPT_ENDORSEMENTS)

    async def certificates(self, report: Report) -> tuple[bytes, ...]:
        """Return the stored certificates, or fetch them from the source and store them.

        A folder that cannot be read or written, or does not answer, costs a request each time, and
        one line in the log.
        """
        try:
            if found := await self._kept.certificates(report):
                return found
        except EndorsementUnavailableError as error:
            _LOGGER.debug("no stored certificates: %s", error)
        found = await self._inner.certificates(report)
        if found:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    await threads.KEPT_ENDORSEMENTS.run(self._keep, found)
            except TimeoutError as error:
                self._say(words_of(error))
        return found

    def _keep(self, found: tuple[bytes, ...]) -> None:
        name = hashlib.sha256(found[0]).hexdigest()[:32]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # The leaf comes last: once it is there, the folder is taken for whole.
            for count, der in reversed(list(enumerate(found))):
                replace_file(self._folder / f"{name}-{count}.der", der, mode=0o644)
        except OSError as error:
            self._say(words_of(error))

    def _say(self, why: str) -> None:
        _LOGGER.warning(
            "a certificate cannot be stored, and will be fetched again: %s",
            why,
            extra={"path": str(self._folder)},
        )


def endorsed(attester: Attester, section: AttestationSection, clock: Clock) -> Attester:
    """Make an attester that completes its evidence from the sources of a section, if any."""
    sources = endorsements_of(section, clock)
    return EndorsedAttester(attester, sources) if sources else attester


def endorsements_of(
    section: AttestationSection, clock: Clock, *, host: Endorsements | None = None
) -> tuple[Endorsements, ...]:
    """Make the sources that a section names, in order: folder, host, server.

    Args:
        section: the configuration.
        clock: makes the pauses.
        host: another source of certificates, such as a cloud's metadata service.

    Raises:
        ConfigurationError: the folder is not there.
    """
    sources: list[Endorsements] = []
    if section.certificates is not None:
        if not is_folder(section.certificates):
            raise ConfigurationError(
                f"attestation.certificates: {section.certificates} is not a directory",
                advice="make it, or name another; it may be empty",
            )
        sources.append(DirectoryEndorsements(section.certificates))
    if host is not None:
        sources.append(host)
    if section.certificate_server is not None:
        from sds.attestation.snp.kds import KdsEndorsements  # noqa: PLC0415  see the module

        server: Endorsements = KdsEndorsements(
            section.certificate_server, clock, product=section.product
        )
        if section.certificate_cache is not None:
            server = KeptEndorsements(server, section.certificate_cache)
        sources.append(server)
    return tuple(sources)
