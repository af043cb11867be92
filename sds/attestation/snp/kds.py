"""Fetches certificates from a server in the layout of AMD's KDS (AMD 57230).

Owns the request for a VCEK and its chain. Invariants: a certificate that does not belong to the
report, or was damaged, is refused; requests, sizes and times are bounded; a server that failed, or
said "later", is not asked until that time has passed, however often evidence is needed. A process
that asks no server does not load this module, because its HTTP client takes 6 MB.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import aiohttp

from sds.attestation.collateral.publisher_answers import AFTER_FAILURE, asking, read_body
from sds.attestation.pem import der_certificates
from sds.attestation.snp.report import CPUID_VERSION, Product, Report, SigningKey
from sds.attestation.snp.sources import (
    MAX_ANSWER_BYTES,
    fits_report,
    hold_together,
    issuers_of,
    vcek_target,
)
from sds.backoff import LATER, retry_after, uniform
from sds.errors import EndorsementUnavailableError, EvidenceError
from sds.http_client import client_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from sds.clock import Clock

ATTEMPTS: Final = 4
FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 5.0
"""The longest Retry-After to wait for; a longer one ends the attempt, and is respected later."""
TIMEOUT_SECONDS: Final = 10.0


class _LaterError(Exception):
    """The server says "later", perhaps with a number of seconds."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class KdsEndorsements:
    """Certificates of a server in the layout of AMD's KDS, most often a cache of one's own."""

    def __init__(self, url: str, clock: Clock, *, product: Product | None = None) -> None:
        """Configure it.

        Args:
            url: everything before ``/vcek/v1/…``.
            clock: for the pauses between attempts.
            product: the product for reports of version 2, which name none.
        """
        self._url = url.rstrip("/")
        self._clock = clock
        self._product = product
        self._kept: dict[str, tuple[bytes, ...]] = {}
        self._failures = 0
        self._again = 0.0

    async def certificates(self, report: Report) -> tuple[bytes, ...]:
        """Return DER, leaf first; empty for a VLEK, which only its cloud provider gives."""
        product = self._product if report.version < CPUID_VERSION else report.product
        if report.signing_key != SigningKey.VCEK or product is None or not any(report.chip_id):
            return ()
        paths = vcek_path(report, product), f"/vcek/v1/{product.certificate_name}/cert_chain"
        wait = self._again - self._clock.now().monotonic
        kept = self._kept.keys() >= set(paths)
        if wait > 0 and not kept:
            raise EndorsementUnavailableError(
                f"{self._url} did not answer; it is asked again in {wait:.0f} s",
                advice="with a folder of certificates or a cache of your own, you do not need it",
            )
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with client_session(timeout=timeout) as session:
            (leaf,) = await self._get(session, paths[0], lambda body: self._leaf(body, report))
            issuers = await self._get(session, paths[1], lambda body: self._issuers(body, leaf))
        if not kept and not hold_together(leaf, issuers):
            self._kept.clear()  # one of them was damaged, and both are fetched again
            damaged = EndorsementUnavailableError(
                f"{self._url} answered with certificates that were not signed by those above them"
            )
            raise self._give_up(damaged, 0.0)
        return (leaf, *issuers)

    def _leaf(self, body: bytes, report: Report) -> tuple[bytes, ...]:
        if not fits_report(body, report):
            raise EndorsementUnavailableError(
                f"{self._url} answered with a certificate of another chip or TCB"
            )
        return (body,)

    def _issuers(self, body: bytes, leaf: bytes) -> tuple[bytes, ...]:
        found = der_certificates(body, what=f"the chain of {self._url}")
        if not (issuers := issuers_of(leaf, found)):
            raise EndorsementUnavailableError(
                f"{self._url} answered with a chain of another certificate"
            )
        return issuers

    async def _get(
        self,
        session: aiohttp.ClientSession,
        path: str,
        read: Callable[[bytes], tuple[bytes, ...]],
    ) -> tuple[bytes, ...]:
        """Return what ``read`` makes of an answer; one that it refuses is a failure like others."""
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        pause = FIRST_PAUSE_SECONDS
        for attempt in range(1, ATTEMPTS + 1):
            try:
                content = read(await self._ask(session, path))
            except _LaterError as error:
                if attempt == ATTEMPTS or error.seconds > LONGEST_PAUSE_SECONDS:
                    raise self._give_up(error, error.seconds) from error
                pause = max(pause, error.seconds)
            except EvidenceError as error:
                if attempt == ATTEMPTS:
                    raise self._give_up(error, 0.0) from error
            else:
                self._failures = 0
                # Keep one leaf and one chain, because those of an older TCB are not needed again.
                if len(self._kept) >= ATTEMPTS:
                    self._kept.clear()
                self._kept[path] = content
                return content
            await self._clock.sleep(pause)
            pause *= 2
        raise EndorsementUnavailableError("no attempt was made")

    def _give_up(self, error: Exception, seconds: float) -> EndorsementUnavailableError:
        """Ask nothing for a while: longer after each failure, and as long as the server says."""
        self._failures += 1
        wait = max(seconds, AFTER_FAILURE.seconds(self._failures, draw=uniform()))
        self._again = self._clock.now().monotonic + wait
        return EndorsementUnavailableError(f"{error}; it is asked again in {wait:.0f} s")

    async def _ask(self, session: aiohttp.ClientSession, path: str) -> bytes:
        what = f"{self._url}{path.partition('?')[0]}"
        with asking(what):
            async with session.get(f"{self._url}{path}", allow_redirects=False) as answer:
                content = await read_body(answer, MAX_ANSWER_BYTES)
        if answer.status in LATER:
            raise _LaterError(
                f"{what} answered with status {answer.status}",
                retry_after(answer.headers.get("Retry-After", ""), self._clock.now().wall),
            )
        if answer.status != HTTPStatus.OK or len(content) > MAX_ANSWER_BYTES:
            raise EndorsementUnavailableError(
                f"{what} answered with status {answer.status} and {len(content)} bytes"
            )
        return content


def vcek_path(report: Report, product: Product) -> str:
    """Return path and query of a report's VCEK."""
    return vcek_target(product, report.chip_id, report.reported_tcb)
