"""Sends requests through the demo's Envoys, each over its own TLS connection.

Owns the HTTP side: one request, and what both Envoys say about its certificates. The server Envoy's
answer names the client's certificate, and the client Envoy's header contains the server's
certificate: the proof about each side comes from its peer.
"""

from __future__ import annotations

import json
import urllib.parse
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import aiohttp
from cryptography import x509

from sds.demo.ledger import PeerCertificate
from sds.errors import RequestFailedError
from sds.untrusted_input import reading, words_of

if TYPE_CHECKING:
    from sds.demo.ledger import RotationLedger

SERVER_CERTIFICATE_HEADER: Final = "x-sds-server-certificate"
_HTTP_OK: Final = 200
_HTTP_FORBIDDEN: Final = 403


async def ask(
    http: aiohttp.ClientSession, entry: str, ledger: RotationLedger
) -> dict[str, PeerCertificate] | None:
    """Send one request; return, for each workload, the certificate that the other side saw.

    Returns None if the server's Envoy denied the request (403).

    Raises:
        RequestFailedError: no answer, another status than 200, an answer that does not name the
            peers, or a peer that is not who it should be.
    """
    try:
        async with http.get(entry) as response:
            body = await response.text()
            header = response.headers.get(SERVER_CERTIFICATE_HEADER, "")
            status = response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        raise RequestFailedError(f"no answer: {words_of(error)}") from error
    if status == _HTTP_FORBIDDEN:
        return None
    if status != _HTTP_OK:
        raise RequestFailedError(f"HTTP {status}: {body.strip()[:300]}")
    seen = {"client": client_certificate(body), "server": server_certificate(header)}
    for wrong in ledger.wrong_identities(seen):
        raise RequestFailedError(wrong)
    return seen


def client_certificate(body: str) -> PeerCertificate:
    """Return the client's certificate, as the server Envoy's answer describes it.

    Raises:
        RequestFailedError: the answer has another form.
    """
    try:
        answer: dict[str, Any] = json.loads(body)
        return PeerCertificate(
            spiffe_id=answer["peer"],
            serial=_hex(int(answer["serial"], 16)),
            not_after=datetime.fromisoformat(answer["not_after"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise RequestFailedError(f"the server's answer names no peer: {body[:300]!r}") from error


def server_certificate(header: str) -> PeerCertificate:
    """Return the server's certificate, from the percent-encoded PEM of the client's Envoy.

    Raises:
        RequestFailedError: the header has no certificate with one URI SAN.
    """
    with reading("the client Envoy reports no server certificate", RequestFailedError):
        certificate = x509.load_pem_x509_certificate(urllib.parse.unquote(header).encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (spiffe_id,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return PeerCertificate(
        spiffe_id=spiffe_id,
        serial=_hex(certificate.serial_number),
        not_after=certificate.not_valid_after_utc.astimezone(UTC),
    )


def _hex(serial: int) -> str:
    return f"{serial:x}"
