"""Azure's instance metadata service: the VCEK of this machine, and quotes of TDREPORTs.

Owns two requests to the link-local service of the guest's own host. Invariants: an answer adds no
trust; sizes, times and the number of requests are bounded; a service that says "later" is asked
again later, and not before the time that it names (Retry-After). Sources: Microsoft, "Azure
Instance Metadata Service" (header ``Metadata``, throttling); Azure's guest attestation
(``/metadata/THIM/amd/certification``, ``/acc/tdquote``).
"""

from __future__ import annotations

import base64
import binascii
import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from sds.attestation.collateral.publisher_answers import asking, read_body
from sds.attestation.pem import der_certificates
from sds.attestation.snp.sources import fits_report, hold_together, issuers_of
from sds.backoff import Backoff, retry_after, uniform
from sds.errors import EndorsementUnavailableError, EvidenceError
from sds.http_client import client_session

if TYPE_CHECKING:
    from sds.attestation.snp.report import Report
    from sds.clock import Clock

ATTEMPTS: Final = 5
_BACKOFF: Final = Backoff(first=0.5, longest=8.0)
_LONGEST_PAUSE_SECONDS: Final = 8.0
"""The longest Retry-After to wait for; a longer one ends the attempts."""
_TIMEOUT_SECONDS: Final = 10.0
_MAX_ANSWER_BYTES: Final = 256 * 1024
_LATER: Final = frozenset(
    {
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.GONE,  # "the service is being updated"
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }
)


class MetadataService:
    """The instance metadata service.

    Args:
        url: everything before the path.
        clock: for the pauses between attempts.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = url.rstrip("/")
        self._clock = clock
        self._again = 0.0
        """When the service wants to be asked again, in monotonic time."""

    async def certificates(self, report: Report) -> tuple[bytes, ...]:
        """Fetch the VCEK of this machine, ASK and ARK, if they belong to the report.

        Raises:
            EndorsementUnavailableError: it does not answer, or answers something else.
        """
        path = "/metadata/THIM/amd/certification"
        answer = await self._ask("GET", path, None)
        try:
            pem = answer["vcekCert"] + answer["certificateChain"]
            leaf, *issuers = der_certificates(pem.encode(), what=f"{self._url}{path}")
        except (KeyError, TypeError, ValueError, AttributeError, EvidenceError) as error:
            raise EndorsementUnavailableError(
                f"{self._url}{path} gave no vcekCert and certificateChain: {error!r}"[:300]
            ) from error
        # After a firmware update, the service has the certificate of a TCB that this boot's
        # report does not name yet. What was damaged on its way would be kept until the next boot.
        good = fits_report(leaf, report) and hold_together(leaf, issuers_of(leaf, issuers))
        return (leaf, *issuers) if good else ()

    async def td_quote(self, report: bytes) -> bytes:
        """Fetch the quote for a TDREPORT of this machine.

        Raises:
            EndorsementUnavailableError: it does not answer, or answers something else.
        """
        encoded = base64.urlsafe_b64encode(report).rstrip(b"=").decode()
        answer = await self._ask("POST", "/acc/tdquote", {"report": encoded})
        try:
            text = answer["quote"]
            return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise EndorsementUnavailableError(
                f"{self._url}/acc/tdquote gave no quote: {error!r}"[:300]
            ) from error

    async def _ask(self, method: str, path: str, document: object) -> dict[str, Any]:
        self._require_time(0.0)
        for failures in range(1, ATTEMPTS + 1):
            content = await self._once(method, path, document)
            if content is not None:
                try:
                    found = json.loads(content)
                except (ValueError, RecursionError):
                    found = None
                if not isinstance(found, dict):
                    raise EndorsementUnavailableError(f"{self._url}{path} gave no JSON object")
                return found
            if failures < ATTEMPTS:
                wait = self._require_time(_LONGEST_PAUSE_SECONDS)
                pause = _BACKOFF.seconds(failures, draw=uniform())
                await self._clock.sleep(max(pause, wait))
        raise EndorsementUnavailableError(
            f"{self._url}{path} asked us {ATTEMPTS} times to try again later"
        )

    def _require_time(self, most: float) -> float:
        """Return the seconds until the service may be asked.

        Raises:
            EndorsementUnavailableError: they are more than ``most``.
        """
        wait = self._again - self._clock.now().monotonic
        if wait > most:
            raise EndorsementUnavailableError(
                f"{self._url} asked us to try again later, in {wait:.0f} s"
            )
        return wait

    async def _once(self, method: str, path: str, document: object) -> bytes | None:
        """Fetch one answer, or None if the service says: later."""
        what = f"{self._url}{path}"
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        with asking(what):
            # No proxy: it would send the request to another host.
            async with (
                client_session(timeout=timeout, trust_env=False) as session,
                session.request(
                    method, what, json=document, headers={"Metadata": "true"}, allow_redirects=False
                ) as answer,
            ):
                content = await read_body(answer, _MAX_ANSWER_BYTES)
        if answer.status in _LATER:
            now = self._clock.now()
            self._again = now.monotonic + retry_after(
                answer.headers.get("Retry-After", ""), now.wall
            )
            return None
        if answer.status != HTTPStatus.OK or len(content) > _MAX_ANSWER_BYTES:
            raise EndorsementUnavailableError(
                f"{what} answered with status {answer.status} and {len(content)} bytes"
            )
        return content
