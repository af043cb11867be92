"""Fetches once from a SPIFFE bundle endpoint (SPIFFE Federation, section 5).

Owns both profiles: ``https_web`` (the public web's trust, or a root of the operator's) and
``https_spiffe`` (an X.509-SVID of a configured SPIFFE ID, under a bundle that the agent has).
Invariants: TLS is always verified, in one of these two ways; nothing is sent before the peer's
SPIFFE ID is verified; redirects are not followed; an answer has a deadline and a bounded size, with
everything around the document: heads, whatever they announce, and the frames of chunks.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import socket
import ssl
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from cryptography import x509

from sds.backoff import LATER, retry_after
from sds.clock import SystemClock
from sds.errors import BundleError, CertificateError, ConfigurationError
from sds.federation.document import MAX_DOCUMENT_BYTES
from sds.files import read_file
from sds.pki import certificate_pem, plain_pem
from sds.pki.constraints import extension
from sds.settings.https_url import check_https_url
from sds.untrusted_input import reading, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sds.identity import SpiffeId

_MAX_ROOT_BYTES: Final = 1024 * 1024
TIMEOUT_SECONDS: Final = 10.0
"""The deadline of each step: to connect, and between two parts of the answer."""
MOST_SECONDS: Final = 30.0
"""The deadline of the whole fetch."""
_MOST_RECEIVED: Final = 2 * MAX_DOCUMENT_BYTES
"""The most bytes of an answer. ``http.client`` reads heads of status 1xx and trailers without end,
and the time that this takes is taken from the event loop."""
_HEADERS: Final = {"Accept": "application/json", "User-Agent": "attested-sds"}
"""Some hosts refuse requests that do not say which program they come from (RFC 9110, 10.1.5)."""
_LATE: Final = f"no whole answer within {MOST_SECONDS:g} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleServer:
    """Where a bundle is fetched, and how the server proves its identity.

    Attributes:
        url: ``https://host[:port]/path``.
        spiffe_id: the server's SPIFFE ID (``https_spiffe``); None for ``https_web``.
        root: the PEM file of roots for ``https_web``; None for the system's roots.
    """

    url: str
    spiffe_id: SpiffeId | None = None
    root: Path | None = None

    def __post_init__(self) -> None:
        """Check that the URL is HTTPS with a host and without a password."""
        try:
            check_https_url(self.url)
        except ValueError as error:
            raise ConfigurationError(f"bundle endpoint: {error}") from error


class _Received(io.RawIOBase):
    """What a server sends, up to its largest size."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._left = _MOST_RECEIVED

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int | None:  # type: ignore[override]  # what BufferedReader gives
        """Read the next bytes.

        Raises:
            OSError: there were too many.
        """
        if self._left <= 0:
            raise OSError(f"the answer has more than {_MOST_RECEIVED} bytes")
        count: int | None = self._raw.readinto(buffer)
        self._left -= count or 0
        return count

    def close(self) -> None:
        """Close what it reads from too."""
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer of bounded size."""

    def __init__(self, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp = io.BufferedReader(_Received(self.fp.detach()))


class _Connection(http.client.HTTPSConnection):
    """An HTTPS connection that checks its peer before it sends a byte of the request."""

    response_class = _Response

    def __init__(self, endpoint: BundleServer, context: ssl.SSLContext) -> None:
        parts = urlsplit(endpoint.url)
        super().__init__(
            parts.hostname or "", parts.port or 443, timeout=TIMEOUT_SECONDS, context=context
        )
        self._expected = endpoint.spiffe_id
        self._reached: socket.socket | None = None
        """Stays when ``http.client`` forgets it, where an answer ends with its connection."""
        self.is_late = False

    def cut(self) -> None:
        """Stop waiting for the peer; called from another thread.

        The socket's own timeout restarts with every byte, and an answer can come byte by byte.
        """
        self.is_late = True
        reached = self._reached or self.sock
        if reached is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown: it takes the TLS state away from the thread that reads.
                socket.socket.shutdown(reached, socket.SHUT_RDWR)

    def connect(self) -> None:
        super().connect()
        self._reached = self.sock
        if self.is_late:  # there was no socket yet to be shut
            raise TimeoutError(_LATE)
        if self._expected is not None:
            check_peer(self.sock.getpeercert(binary_form=True) or b"", self._expected)


def fetch(endpoint: BundleServer, *, roots: Sequence[bytes]) -> bytes:
    """Fetch the document; block for at most :data:`MOST_SECONDS` once the server is reached.

    Args:
        endpoint: where to fetch, and how the server proves its identity.
        roots: the roots, in DER, of the trust domain of ``endpoint.spiffe_id``, for
            ``https_spiffe``.

    Raises:
        BundleError: ``bundle_unavailable``: the server is not reached, TLS fails, or the status is
            not 200.
        ConfigurationError: the root file cannot be used.
    """
    connection = _Connection(endpoint, _context(endpoint, roots))
    late = threading.Timer(MOST_SECONDS, connection.cut)
    late.daemon = True
    late.start()
    parts = urlsplit(endpoint.url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", target, headers=_HEADERS)
        response = connection.getresponse()
        body = _read(response)
        if connection.is_late:
            raise TimeoutError(_LATE)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if connection.is_late:  # whatever the cut looked like
            raise BundleError(
                f"bundle endpoint {endpoint.url} cannot be reached: {_LATE}",
                reason="bundle_unavailable",
            ) from error
        if not isinstance(error, ssl.SSLError):
            raise BundleError(
                f"bundle endpoint {endpoint.url} cannot be reached: {words_of(error)}",
                reason="bundle_unavailable",
            ) from error
        raise BundleError(
            f"bundle endpoint {endpoint.url}: TLS cannot be verified: {words_of(error)}",
            advice="check federation.bundles[].root, or with https_spiffe the bundle in file: the "
            "endpoint is verified under it",
            reason="bundle_unavailable",
        ) from error
    finally:
        late.cancel()
        connection.close()
    if response.status != http.client.OK:
        refused = BundleError(
            f"bundle endpoint {endpoint.url} answered {response.status} {response.reason[:100]}",
            advice="redirects are not followed: configure the last URL",
            reason="bundle_unavailable",
        )
        if response.status in LATER:
            asked = response.getheader("Retry-After", "")
            refused.later = retry_after(asked, SystemClock().now().wall)
        raise refused
    return body


def _read(response: http.client.HTTPResponse) -> bytes:
    """Read the body, up to its largest size."""
    body = bytearray()
    while len(body) <= MAX_DOCUMENT_BYTES and (part := response.read1(65536)):
        body += part
    if response.length and len(body) <= MAX_DOCUMENT_BYTES:
        raise http.client.IncompleteRead(bytes(body), response.length)
    return bytes(body)


def check_peer(der: bytes, expected: SpiffeId) -> None:
    """Check that a certificate is a leaf of exactly this SPIFFE ID (X.509-SVID, 2 and 5.2).

    TLS has checked the path to a root and the times.

    Raises:
        BundleError: ``bundle_unavailable``: it is not.
    """
    with reading("the bundle endpoint's certificate", BundleError, reason="bundle_unavailable"):
        certificate = x509.load_der_x509_certificate(der)
        names = extension(certificate, x509.SubjectAlternativeName)
        found = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
        constraints = extension(certificate, x509.BasicConstraints)
        usage = extension(certificate, x509.KeyUsage)
    if found != [str(expected)]:
        raise BundleError(
            f"the bundle endpoint's certificate is for {', '.join(found) or 'no SPIFFE ID'}, "
            f"not {expected}",
            advice="check endpoint_spiffe_id",
            reason="bundle_unavailable",
        )
    signs = usage is not None and (usage.key_cert_sign or usage.crl_sign)
    if signs or (constraints is not None and constraints.ca):
        raise BundleError(
            f"the bundle endpoint's certificate for {expected} is an authority's, which proves "
            "nobody's identity",
            advice="the owner of the endpoint must give it an X.509-SVID that signs nothing",
            reason="bundle_unavailable",
        )


def _context(endpoint: BundleServer, roots: Sequence[bytes]) -> ssl.SSLContext:
    if endpoint.spiffe_id is None:
        if endpoint.root is None:
            return ssl.create_default_context()
        try:
            # Not create_default_context: only the roots of this file may count.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            pem = read_file(endpoint.root, max_bytes=_MAX_ROOT_BYTES)
            context.load_verify_locations(cadata=plain_pem(pem, what="it").decode())
        except (OSError, ValueError, CertificateError) as error:
            raise ConfigurationError(
                f"root {endpoint.root} of bundle endpoint {endpoint.url} cannot be used: "
                f"{words_of(error)}"
            ) from error
        return context
    if not roots:
        raise BundleError(
            f"there is no bundle of {endpoint.spiffe_id.trust_domain} under which bundle endpoint "
            f"{endpoint.url} could be verified",
            advice="give an initial bundle",
            reason="bundle_unavailable",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # The peer is named by its SPIFFE ID (check_peer), never by a DNS name.
    context.check_hostname = False
    context.load_verify_locations(cadata=certificate_pem(roots).decode())
    return context
