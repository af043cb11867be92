"""The client of Istio's certificate authority (``istio.v1.auth.IstioCertificateService``).

Owns the exchange with istiod: one ``CreateCertificate`` call for each certificate, over TLS that is
verified against a configured root and server name, with a bearer token that is read again for every
exchange (the kubelet replaces a projected token long before it expires). Invariant: a chain is
returned only for the requested SPIFFE ID. istiod ignores the names in a CSR and answers with its
caller's own identity, so a chain for any other name is an error here; the caller verifies the rest
of the chain (``sds.pki``).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf import struct_pb2

from sds import threads
from sds._proto.istio.v1.auth import ca_pb2
from sds.authority import istio_answer
from sds.authority.channel import split_address
from sds.authority.istio_line import IstioLine
from sds.authority.istio_token import bearer_problem
from sds.authority.port import Issuance
from sds.authority.root_file import ANSWER_SECONDS, RootFile
from sds.errors import (
    AuthorityAnswerError,
    AuthorityError,
    AuthorityUnavailableError,
    ConfigurationError,
)
from sds.faults import report
from sds.files import read_file
from sds.pki import MAX_BUNDLE_BYTES, MAX_ROOTS, fit_a_bundle
from sds.supervision import is_cancelled
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from sds.authority.istio_settings import IstioSettings
    from sds.clock import Clock
    from sds.exchange.item import CertificateItem, IssuedChain

_METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
_CONCURRENT_CALLS: Final = 16
"""The most calls of an exchange at once: a node's cold start must not look like an attack."""
_MAX_TOKEN_BYTES: Final = 64 * 1024


class IstioAuthority:
    """An :class:`sds.authority.port.Authority` that asks Istio's authority."""

    def __init__(self, settings: IstioSettings, *, clock: Clock) -> None:
        """Make a client that reads and connects nothing before the first exchange.

        Raises:
            ConfigurationError: an address is not ``host:port``, or cannot be looked up.
        """
        for address in settings.addresses:
            split_address(address)
        self._settings = settings
        self._clock = clock
        self._roots: RootFile | None = None
        self._line: IstioLine | None = None
        self._address = 0

    async def issue(self, items: Sequence[CertificateItem]) -> Issuance:
        """Ask for a certificate for each item; see :class:`sds.authority.port.Authority`.

        No call begins later than ``timeout`` after the first, and none takes longer than that, so
        the answers that came are returned within twice that time, however many calls hang.

        Raises:
            AuthorityError: ``authority_token``: the token file cannot be read or has no token.
            AuthorityUnavailableError: no item was answered.
            AuthorityError: ``authority_root``: the root file cannot be used.
        """
        token = await self._token()
        root = await self._root()
        roots: set[bytes] = set()
        turns = _Turns(seconds=self._settings.timeout.total_seconds())
        with self._connected(root).used() as line:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = {
                        index: group.create_task(
                            self._outcome(line, token, items[index], turns, roots)
                        )
                        # In any order, so that those whose calls hang are not always the first.
                        for index in random.sample(range(len(items)), len(items))
                    }
            except asyncio.CancelledError:
                self._move_on(line)  # who asked waits no longer: another replica may answer
                raise
        outcomes = tuple(tasks[index].result() for index in range(len(items)))
        unanswered = [o for o in outcomes if isinstance(o, AuthorityUnavailableError)]
        if unanswered:
            self._move_on(line)
            if len(unanswered) == len(outcomes):
                raise unanswered[0]
        return Issuance(outcomes=outcomes, roots=tuple(sorted(roots)))

    async def aclose(self) -> None:
        """Close the connection when its calls are done; a later exchange opens a new one."""
        line, self._line = self._line, None
        if line is not None:
            line.retire()
            await line.closed()

    # --- one certificate ------------------------------------------------------------------------

    async def _outcome(
        self,
        line: IstioLine,
        token: str,
        item: CertificateItem,
        turns: _Turns,
        roots: set[bytes],
    ) -> IssuedChain | AuthorityError:
        """Ask for one certificate, and add the roots that come with it."""
        try:
            async with turns.one(line.address):
                answer = await self._create(line, token, item)
            _add_roots(roots, answer.roots)
        except AuthorityError as error:
            return error
        except Exception as error:  # noqa: BLE001  the boundary between one certificate and the others
            report("issuance", error)
            return AuthorityUnavailableError(
                f"the client of Istio's authority failed: {type(error).__name__}: {words_of(error)}"
            )
        return answer.chain

    async def _create(
        self, line: IstioLine, token: str, item: CertificateItem
    ) -> istio_answer.IstioAnswer:
        identity = item.identity
        if identity.dns_names:
            raise AuthorityAnswerError(
                f"Istio's authority puts no DNS names into certificates, and {identity.spiffe_id} "
                f"wants {', '.join(identity.dns_names)}",
                advice="leave dns_names and service_dns_names of this workload out: in a "
                "configuration of Kubernetes write service_dns_names: []",
            )
        call = line.channel.unary_unary(
            _METHOD,
            request_serializer=ca_pb2.IstioCertificateRequest.SerializeToString,
            response_deserializer=bytes,
        )
        try:
            response = await call(
                request(item, impersonate=self._settings.impersonate),
                metadata=(
                    ("authorization", f"Bearer {token}"),
                    ("clusterid", self._settings.cluster_id),
                ),
                timeout=self._settings.timeout.total_seconds(),
            )
        except grpc.aio.AioRpcError as error:
            raise istio_answer.refusal(
                error.code(),
                error.details() or "",
                where=f"Istio's authority at {line.address}",
                token_problem=bearer_problem(
                    token, audience=self._settings.audience, now=self._clock.now().wall
                ),
                impersonating=self._settings.impersonate,
            ) from None  # our error has code and details; the rest is gRPC's debugging
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            # gRPC ends a call like this if its channel is closed, although nobody cancelled the
            # task.
            raise AuthorityUnavailableError(
                f"the call to Istio's authority at {line.address} was cut off"
            ) from None
        # Off the event loop: whatever the authority puts into an answer, nobody else waits.
        answer = await threads.ROTATION.run(_parsed, response)
        istio_answer.check_identity(answer, identity, impersonating=self._settings.impersonate)
        return answer

    # --- files and connection -------------------------------------------------------------------

    async def _token(self) -> str:
        path = self._settings.token
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                raw = await threads.AUTHORITY_FILES.run(read_file, path, max_bytes=_MAX_TOKEN_BYTES)
        except OSError as error:  # and a TimeoutError
            raise AuthorityError(
                f"the token file {path} cannot be read: {error.strerror or words_of(error)}",
                advice="mount a projected service-account token with audience "
                f"{self._settings.audience!r} there",
                reason="authority_token",
            ) from error
        return bearer_token(raw, path)

    def _connected(self, root: bytes) -> IstioLine:
        """Return the connection, a new one if the root file's content changed."""
        if self._line is not None and root != self._line.root:
            self._line.retire()
            self._line = None
        if self._line is None:
            self._line = IstioLine(
                self._settings.addresses[self._address],
                root=root,
                server_name=self._settings.server_name,
                seconds=self._settings.timeout.total_seconds(),
            )
        return self._line

    def _move_on(self, line: IstioLine) -> None:
        """Give up a connection that did not answer, unless another call did so before.

        The next exchange makes a new connection, to the next address if there are several. Even
        behind one address there may be several replicas, and the connected one may be gone.
        """
        if line is self._line:
            self._address = (self._address + 1) % len(self._settings.addresses)
            line.retire()
            self._line = None

    async def _root(self) -> bytes:
        """Return the roots of istiod's TLS as the file has them, or as it had them last, in PEM."""
        path = self._settings.root
        try:
            if self._roots is None:
                async with asyncio.timeout(ANSWER_SECONDS):
                    self._roots = await threads.AUTHORITY_FILES.run(RootFile, path)
            return await self._roots.current()
        except (ConfigurationError, TimeoutError) as error:
            raise AuthorityError(
                f"authority.root: {path} cannot be used: {words_of(error)}",
                advice="mount istio-ca-root-cert's root-cert.pem there",
                reason="authority_root",
            ) from error


class _Turns:
    """The turns of one exchange's calls: few at once, and none that begins late.

    Args:
        seconds: how long after the start of the exchange a call may begin.
    """

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._end = asyncio.get_running_loop().time() + seconds
        self._slots = asyncio.Semaphore(_CONCURRENT_CALLS)

    @contextlib.asynccontextmanager
    async def one(self, address: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it.

        Raises:
            AuthorityUnavailableError: there was none in time: other calls took all of it.
        """
        async with contextlib.AsyncExitStack() as held:
            late = AuthorityUnavailableError(
                f"Istio's authority at {address} was not asked: its answers to others, "
                f"{_CONCURRENT_CALLS} at a time, took {self._seconds:g} s"
            )
            try:
                async with asyncio.timeout_at(self._end):
                    await held.enter_async_context(self._slots)
            except TimeoutError:
                raise late from None
            if asyncio.get_running_loop().time() >= self._end:
                raise late  # a turn that came free together with the end
            yield


def bearer_token(raw: bytes, path: Path) -> str:
    """Return the token in a file's content; gRPC accepts only visible ASCII in metadata.

    Raises:
        AuthorityError: ``authority_token``: it is not one token.
    """
    text = raw.decode("ascii", errors="replace").strip()
    if not text or not text.isascii() or not text.isprintable() or len(text.split()) > 1:
        raise AuthorityError(
            f"the token file {path} must contain one token",
            advice="it must contain a single JWT and nothing else",
            reason="authority_token",
        )
    return text


def _add_roots(roots: set[bytes], more: Sequence[bytes]) -> None:
    """Add the roots of one more answer to those of a batch.

    Raises:
        AuthorityAnswerError: ``authority_roots``: there would be too many; none was added.
    """
    together = roots.union(more)
    if not fit_a_bundle(together):
        raise AuthorityAnswerError(
            f"Istio's authority named {len(together)} roots in its answers to one batch; at most "
            f"{MAX_ROOTS} are accepted, with at most {MAX_BUNDLE_BYTES} bytes",
            reason="authority_roots",
        )
    roots |= together


def _parsed(response: bytes) -> istio_answer.IstioAnswer:
    return istio_answer.parse(istio_answer.elements(response))


def request(item: CertificateItem, *, impersonate: bool) -> ca_pb2.IstioCertificateRequest:
    """Make the message that asks for one certificate."""
    csr = x509.load_der_x509_csr(item.csr).public_bytes(serialization.Encoding.PEM)
    message = ca_pb2.IstioCertificateRequest(
        csr=csr.decode("ascii"),
        # 0 would mean the authority's default of 24 h
        validity_duration=max(1, int(item.identity.lifetime.total_seconds())),
    )
    if impersonate:
        metadata = struct_pb2.Struct()
        metadata.update({"ImpersonatedIdentity": str(item.identity.spiffe_id)})
        message.metadata.CopyFrom(metadata)
    return message
