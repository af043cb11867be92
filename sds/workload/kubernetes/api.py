"""Requests to a kubelet or an API server: TLS to a configured root, a token read for each request.

Owns :class:`ApiClient`. Invariants: the server's certificate is verified against the configured
root, and skipping that must be configured and works for 127.0.0.1 only; the token is read from its
file for every request (kubelets renew projected tokens) and appears in no message; the size and the
time of an answer are bounded.

aiohttp takes 8 MB, so only code that opens a client imports this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from sds import threads
from sds.backoff import LATER, retry_after
from sds.clock import SystemClock
from sds.errors import CertificateError, KubernetesError
from sds.files import read_file
from sds.http_client import NO_ANSWER, client_session
from sds.pki.encoding import plain_pem
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping
    from typing import Self

    from sds.workload.kubernetes.server import KubernetesServer


_LOG = logging.getLogger("sds.workload.kubernetes")
_ACCEPT: Final = "application/json, application/jwk-set+json"
_MAX_BYTES: Final = 4 << 20
_MAX_LIST_BYTES: Final = 512 << 20
"""Of one list, of which one object at a time is in memory."""
_MAX_FILE_BYTES: Final = 1 << 20
_LINE_BYTES: Final = 4 << 20  # one event of a watch; an object in etcd has at most 1.5 MiB
_CLOCK: Final = SystemClock()
_WORDS: Final = {
    401: "401: the token is missing or not accepted",
    403: "403: the token's account may not do this",
}


class ApiClient:
    """GETs and POSTs JSON; an asynchronous context manager."""

    def __init__(self, server: KubernetesServer, *, timeout_seconds: float = 10.0) -> None:
        """Open nothing before the context is entered."""
        self._server = server
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session; the first connection reads the root."""
        if self._server.insecure_skip_verify:
            _LOG.warning(
                "the server's certificate is NOT verified: any process on this machine that "
                "listens there can name any pod",
                extra={"url": self._server.url},
            )
        self._session = client_session(auto_decompress=True, read_bufsize=_LINE_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """Return the body of a successful GET.

        Raises:
            KubernetesError: the server is not reached, is not verified, refuses or is late.
        """
        async with self._request("GET", path, params=params) as response:
            return await self._body(response, path)

    async def post(self, path: str, document: Mapping[str, Any]) -> bytes:
        """Return the body of a successful POST of a JSON document.

        Raises:
            KubernetesError: as for :meth:`get`.
        """
        async with self._request("POST", path, document=document) as response:
            return await self._body(response, path)

    async def chunks(
        self, path: str, params: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The body of a successful GET, as it comes; close it where it is not read to its end.

        Raises:
            KubernetesError: as :meth:`get`.
        """
        size = 0
        async with self._request("GET", path, params=params) as response:
            async for chunk in response.content.iter_any():
                size += len(chunk)
                if size > _MAX_LIST_BYTES:
                    raise self._too_long(path, _MAX_LIST_BYTES)
                yield chunk

    async def lines(
        self, path: str, params: Mapping[str, str], *, idle_seconds: float
    ) -> AsyncIterator[bytes]:
        """Yield the lines of an answer that does not end, such as a watch.

        Args:
            path: the path of the request.
            params: the parameters of the query.
            idle_seconds: the longest silence, after which a dead connection ends.

        Raises:
            KubernetesError: as for :meth:`get`.
        """
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeout_seconds, sock_read=idle_seconds
        )
        async with self._request("GET", path, params=params, limits=limits) as response:
            async for line in response.content:
                yield line

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        document: Mapping[str, Any] | None = None,
        limits: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        server = self._server
        if self._session is None:
            raise KubernetesError(f"the client of {server.url} is not open", reason=server.reason)
        headers = {"Accept": _ACCEPT, "User-Agent": "attested-sds"}
        token, context = await self._files()
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        try:
            async with self._session.request(
                method,
                server.url.rstrip("/") + path,
                params=params,
                json=document,
                headers=headers,
                ssl=context,
                server_hostname=server.server_name,
                timeout=limits or aiohttp.ClientTimeout(total=self._timeout_seconds),
                allow_redirects=False,
            ) as response:
                if response.status not in {200, 201}:
                    text = (await response.content.read(1000)).decode("utf-8", "replace").strip()
                    words = _WORDS.get(response.status, str(response.status))
                    denied = response.status in _WORDS
                    refused = KubernetesError(
                        f"{method} {server.url}{path}: {words}: {text[:400]!r}",
                        advice=server.advice if denied else "",
                        reason=server.reason,
                    )
                    if response.status in LATER:
                        asked = response.headers.get("Retry-After", "")
                        refused.later = retry_after(asked, _CLOCK.now().wall)
                    raise refused
                yield response
        except TimeoutError as error:
            raise KubernetesError(
                f"{method} {server.url}{path}: no answer in time", reason=server.reason
            ) from error
        except NO_ANSWER as error:
            raise KubernetesError(
                f"{method} {server.url}{path}: {words_of(error)}", reason=server.reason
            ) from error

    async def _body(self, response: aiohttp.ClientResponse, path: str) -> bytes:
        chunks: list[bytes] = []
        size = 0
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > _MAX_BYTES:
                raise self._too_long(path, _MAX_BYTES)
            chunks.append(chunk)
        return b"".join(chunks)

    def _too_long(self, path: str, most: int) -> KubernetesError:
        return KubernetesError(
            f"{self._server.url}{path}: the answer is longer than {most} bytes",
            reason=self._server.reason,
        )

    async def _files(self) -> tuple[str | None, ssl.SSLContext]:
        """Return the token and the TLS context, as the files are now: both are rotated.

        Raises:
            KubernetesError: a file cannot be used, or does not answer.
        """
        server = self._server
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await threads.KUBERNETES_FILES.run(lambda: (self._token(), self._tls()))
        except TimeoutError as error:
            raise KubernetesError(
                f"{server.token_file} or {server.ca_file} does not answer",
                advice="check whether their file system hangs",
                reason=server.reason,
            ) from error
        except RuntimeError as error:  # the system gives no thread now
            raise KubernetesError(
                f"{server.token_file} and {server.ca_file} cannot be read: {words_of(error)}",
                reason=server.reason,
            ) from error

    def _token(self) -> str | None:
        path = self._server.token_file
        if path is None:
            return None
        try:
            token = read_file(path, max_bytes=_MAX_FILE_BYTES).decode("ascii").strip()
        except UnicodeDecodeError as error:
            raise KubernetesError(
                f"{path}: the token is not ASCII", reason=self._server.reason
            ) from error
        except OSError as error:
            raise KubernetesError(
                f"the token file {path} cannot be read: {error.strerror}",
                reason=self._server.reason,
            ) from error
        if not token:
            raise KubernetesError(f"{path}: the token is empty", reason=self._server.reason)
        return token

    def _tls(self) -> ssl.SSLContext:
        """Make a context with the root as it is now: certificate authorities are rotated too."""
        server = self._server
        if server.insecure_skip_verify or server.ca_file is None:
            return _context(None)
        try:
            return _context(read_file(server.ca_file, max_bytes=_MAX_FILE_BYTES))
        except (OSError, ValueError, CertificateError) as error:
            raise KubernetesError(
                f"{server.ca_file}: no certificates under which {server.url} could be verified: "
                f"{words_of(error)}",
                reason=server.reason,
            ) from error


_MOST_CONTEXTS: Final = 8
_contexts: dict[bytes | None, ssl.SSLContext] = {}


def _context(pem: bytes | None) -> ssl.SSLContext:
    """Return one context for each content of the root file: connections are reused per context.

    Only these roots count, and never the system's, which ``ssl.create_default_context`` takes if
    its text is empty. None verifies nothing (:class:`KubernetesServer` permits that for loopback
    only).

    Raises:
        CertificateError, ValueError, ssl.SSLError: there is no certificate in the text, or one that
            cannot be read.
    """
    context = _contexts.get(pem)
    if context is None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if pem is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context.load_verify_locations(cadata=plain_pem(pem, what="the file").decode())
        if len(_contexts) >= _MOST_CONTEXTS:
            _contexts.clear()
        _contexts[pem] = context
    return context
