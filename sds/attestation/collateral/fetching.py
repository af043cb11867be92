"""Fetches public collateral from its publishers: Intel's PCS or a PCCS, and AMD's KDS.

Owns the requests and the checks of answers; :mod:`sds.attestation.collateral.storing` writes them.
Invariants: nothing is written before its signature is verified, and before it is known to be
current and to be what was requested; documents that no one chain vouches for are not written;
sizes, times and the number of requests are bounded; answers, of which a list of 1 MiB takes half a
second, are read outside the event loop; a publisher that says "later" (429, 503 with Retry-After)
is not asked sooner.

Sources: Intel's PCS API, version 4 (``/tdx/certification/v4/tcb``, ``/qe/identity``,
``/sgx/certification/v4/pckcrl``, ``/rootcacrl`` of a PCCS); AMD 57230, section 4.4 (``/crl``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes, urlsplit

import aiohttp

from sds import threads
from sds.attestation.collateral.publisher_answers import asking, read_body
from sds.attestation.collateral.storing import Fetched, store
from sds.attestation.pem import unhexed
from sds.attestation.snp.certificate import Certificate
from sds.attestation.snp.chain import amd_certificates
from sds.attestation.snp.kind import is_amd_root
from sds.attestation.snp.revocation import read_amd_list
from sds.attestation.tdx.chain import (
    ROOT_NAME,
    TCB_SIGNING_CHAIN,
    link_chain,
    root_digest,
)
from sds.attestation.tdx.collateral import (
    MAX_DOCUMENT_BYTES,
    QE_IDENTITY,
    SIGNING_CHAIN,
    signed_document,
)
from sds.attestation.tdx.revocation import read_intel_list
from sds.attestation.tdx.tcb import read_enclave_identity, read_recoveries, read_tcb_info
from sds.backoff import LATER, Backoff, retry_after, uniform
from sds.errors import EndorsementUnavailableError, EvidenceError
from sds.http_client import client_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric import ec

    from sds.attestation.revocation import RevocationList
    from sds.attestation.snp.report import Product
    from sds.attestation.tdx.tcb import Recovery, SignedDocument
    from sds.clock import Clock

PCS: Final = "https://api.trustedservices.intel.com"
INTEL_ROOT_LIST: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
KDS: Final = "https://kdsintf.amd.com"
TIMEOUT_SECONDS: Final = 30.0
ATTEMPTS: Final = 6
_BACKOFF: Final = Backoff(first=2.0, longest=60.0)
_SIZE_LIMIT: Final = MAX_DOCUMENT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The collateral to be fetched.

    Attributes:
        fmspcs: kinds of TDX platform, FMSPC in hex; without any, no TDX collateral is fetched.
        authorities: PCK authorities whose lists are needed: ``platform``, ``processor``.
        update: Intel's ``standard`` or ``early`` TCB recovery.
        recovery: the tcbEvaluationDataNumber of the TCB recovery to fetch instead.
        products: AMD's products whose lists are needed.
        pcs: Intel's PCS, or a PCCS.
        root_list: the URL of the root's list; None means the PCCS's own.
        kds: AMD's KDS, or a cache in its layout.
        roots: roots that are trusted beside Intel's and AMD's, in DER: those of simulations.
    """

    fmspcs: tuple[str, ...] = ()
    authorities: tuple[str, ...] = ("platform", "processor")
    update: str = "standard"
    recovery: int | None = None
    products: tuple[Product, ...] = ()
    pcs: str = PCS
    root_list: str | None = INTEL_ROOT_LIST
    kds: str = KDS
    roots: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def which(self) -> str:
        """Return the part of a query that names the TCB recovery (PCS 4: one of the two forms)."""
        if self.recovery is not None:
            return f"tcbEvaluationDataNumber={self.recovery}"
        return f"update={self.update}"


class _UnknownThereError(Exception):
    """The publisher answers, but does not know the document."""

    def __init__(self, failure: EndorsementUnavailableError) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)


class Fetcher:
    """Fetches public collateral into a folder.

    Args:
        wanted: the collateral to fetch.
        clock: gives the time, and makes the pauses between attempts.
        patience: the most seconds to wait for one file.
    """

    def __init__(self, wanted: Wanted, *, clock: Clock, patience: float = 600.0) -> None:
        self._wanted = wanted
        self._clock = clock
        self._patience = patience
        self._not_before: dict[str, float] = {}
        """Until when publishers asked to be left alone, by host, in seconds of boot time."""
        self._intel_roots = [root for root in wanted.roots if not is_amd_root(root)]

    async def fetch(self, folder: Path) -> list[Fetched]:
        """Fetch, check and store everything; what was stored before a failure stays stored.

        Neither a platform that the publisher does not know, nor another publisher, nor the list of
        one product keeps others' files from the disk: the error comes at the end, with the messages
        of all.

        Raises:
            EndorsementUnavailableError: a publisher does not answer, or not within the patience, or
                does not know a platform.
            EvidenceError: an answer is invalid: ``collateral_untrusted``, ``collateral_stale``,
                ``revocation_list``, ``revocation_list_stale``, ``chain_untrusted``.
            ConfigurationError: the folder cannot be written.
        """
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        found: list[Fetched] = []
        failures: list[EvidenceError] = []
        async with client_session(timeout=timeout) as session:
            try:
                if self._wanted.fmspcs:
                    found += await self._tdx(session, folder, failures)
            except EvidenceError as error:
                failures.append(error)
            for product in self._wanted.products:
                try:
                    found += await self._amd_list(session, folder, product)
                except _UnknownThereError as error:
                    failures.append(error.failure)
                except EvidenceError as error:
                    failures.append(error)
                    if isinstance(error, EndorsementUnavailableError):
                        break  # the publisher is away: it is not asked for anything else
        if failures:
            first, *others = failures
            first.message = "; ".join([first.message, *(other.message for other in others)])
            raise first
        return found

    async def _amd_list(
        self, session: aiohttp.ClientSession, folder: Path, product: Product
    ) -> list[Fetched]:
        name = product.certificate_name
        answer = await self._known(session, f"{self._wanted.kds}/vcek/v1/{name}/crl")
        own = [Certificate.parse(root) for root in self._wanted.roots if is_amd_root(root)]
        issuers = (*own, *amd_certificates())
        one = await threads.COLLATERAL.run(
            read_amd_list, answer.body, issuers=issuers, origin="the answer"
        )
        lists = [(folder / f"{product}.crl", self._current(one, f"ARK-{name}"))]
        return await threads.COLLATERAL.run(store, [], lists)

    async def _tdx(
        self,
        session: aiohttp.ClientSession,
        folder: Path,
        failures: list[EvidenceError],
    ) -> list[Fetched]:
        wanted = self._wanted
        tdx = f"{wanted.pcs}/tdx/certification/v4"
        files: list[tuple[Path, bytes, datetime]] = []
        chain, key = b"", None
        for fmspc in wanted.fmspcs:
            url = f"{tdx}/tcb?fmspc={fmspc}&{wanted.which}"
            try:
                answer = await self._known(session, url)
            except _UnknownThereError as error:
                failures.append(error.failure)
                continue
            chain = _chain(answer, "TCB-Info-Issuer-Chain")
            key = self._key(chain)
            until = await self._document(answer.body, key, "tcbInfo", fmspc)
            files.append((folder / f"tcb_info-{fmspc.lower()}.json", answer.body, until))
        if key is None:
            return []
        # All are verified under the stored chain, because a folder has only one.
        for path, body, _ in files:
            if not _holds(body, key):
                raise EvidenceError(
                    f"{path.name} is by another signer than the answer that came last",
                    reason="collateral_untrusted",
                    advice="ask again later, or another cache: this one renews them one by one",
                )
        answer = await self._get(session, f"{tdx}/qe/identity?{wanted.which}")
        until = await self._document(answer.body, key, "enclaveIdentity", "")
        files.append((folder / QE_IDENTITY, answer.body, until))
        lists = []
        for authority in wanted.authorities:
            url = f"{wanted.pcs}/sgx/certification/v4/pckcrl?ca={authority}&encoding=der"
            answer = await self._get(session, url)
            name = f"Intel SGX PCK {authority.capitalize()} CA"
            lists.append((folder / f"pck-{authority}.crl", await self._intel(answer.body, name)))
        root_list = wanted.root_list or f"{wanted.pcs}/sgx/certification/v4/rootcacrl"
        answer = await self._get(session, root_list)
        lists.append((folder / "root.crl", await self._intel(answer.body, ROOT_NAME)))
        signer = min(until for _, _, until in files)
        files.insert(0, (folder / SIGNING_CHAIN, chain, signer))
        held = partial(_holds, key=key)
        asked = wanted.recovery is not None
        return await threads.COLLATERAL.run(store, files, lists, held, any_recovery=asked)

    async def recoveries(self) -> list[Recovery]:
        """Fetch the TCB recoveries for which the publisher has documents now, the newest first.

        Raises:
            EndorsementUnavailableError: it does not answer.
            EvidenceError: as for :meth:`fetch`.
        """
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with client_session(timeout=timeout) as session:
            url = f"{self._wanted.pcs}/tdx/certification/v4/tcbevaluationdatanumbers"
            answer = await self._get(session, url)
        chain = _chain(answer, "TCB-Evaluation-Data-Numbers-Issuer-Chain")
        document = await self._signed(answer.body, self._key(chain), "tcbEvaluationDataNumbers")
        return read_recoveries(document)

    def _key(self, chain: bytes) -> ec.EllipticCurvePublicKey:
        """Return the key of a TCB signing chain to a trusted root."""
        return link_chain(
            chain,
            names=TCB_SIGNING_CHAIN,
            trusted=tuple(map(root_digest, self._intel_roots)),
            what="TCB signing chain",
        ).key

    async def _signed(
        self, body: bytes, key: ec.EllipticCurvePublicKey, expected: str
    ) -> SignedDocument:
        now = self._clock.now().wall
        return await threads.COLLATERAL.run(
            signed_document, body, key=key, expected=expected, now=now
        )

    async def _document(
        self, body: bytes, key: ec.EllipticCurvePublicKey, expected: str, fmspc: str
    ) -> datetime:
        document = await self._signed(body, key, expected)
        if expected == "tcbInfo":
            info = read_tcb_info(document)
            if info.fmspc.lower() != fmspc.lower():
                raise EvidenceError(
                    f"asked for the TCB info of {fmspc}, the answer is about {info.fmspc}",
                    reason="collateral_untrusted",
                )
            number = info.evaluation_number
        else:
            number = read_enclave_identity(document).evaluation_number
        if self._wanted.recovery not in {None, number}:
            raise EvidenceError(
                f"asked for the {expected} of TCB recovery {self._wanted.recovery}, the answer is "
                f"of {number}",
                reason="collateral_untrusted",
                advice="`sds collateral recoveries` lists those that the publisher has",
            )
        return datetime.fromisoformat(str(document["nextUpdate"])).astimezone(UTC)

    async def _intel(self, body: bytes, issuer: str) -> RevocationList:
        one = await threads.COLLATERAL.run(
            read_intel_list, unhexed(body), roots=self._intel_roots, origin="the answer"
        )
        return self._current(one, issuer)

    def _current(self, one: RevocationList, issuer: str) -> RevocationList:
        """Check that a list is of the issuer that we asked for, by its common name, and current."""
        if f"CN={issuer}" not in one.issuer_name.split(","):
            raise EvidenceError(
                f"asked for the list of {issuer}, the answer is that of {one.issuer_name}",
                reason="revocation_list",
                advice="ask another cache: this one confuses them",
            )
        now = self._clock.now().wall
        if not one.this_update <= now <= one.next_update:
            raise EvidenceError(
                f"the list of {one.issuer_name} is valid from {one.this_update:%FT%TZ} to "
                f"{one.next_update:%FT%TZ}, the time is {now:%FT%TZ}",
                reason="revocation_list_stale",
                advice="check the clock, or ask another cache",
            )
        return one

    async def _get(self, session: aiohttp.ClientSession, url: str) -> _Answer:
        """Fetch one answer; an unknown document is an error in the caller's terms."""
        try:
            return await self._known(session, url)
        except _UnknownThereError as error:
            raise error.failure from None

    async def _known(self, session: aiohttp.ClientSession, url: str) -> _Answer:
        """Ask until the publisher answers, a bounded number of times within the patience.

        Raises:
            _UnknownThereError: the publisher said at the last attempt too that it has no such
                document. An authority that has not fetched yet says so at first.
        """
        host, waited = urlsplit(url).netloc, 0.0
        left = self._not_before.get(host, 0.0) - self._clock.now().boottime
        if left > 0:
            raise _later(url, left)
        attempts = 0
        while True:
            attempts += 1
            pause = _BACKOFF.seconds(attempts, draw=uniform())
            failure: Exception | None = None
            try:
                answer, wait = await self._ask(session, url)
            except (EndorsementUnavailableError, _UnknownThereError) as error:
                failure = error
            else:
                if answer is not None:
                    return answer
                pause = max(pause, wait)
            if attempts == ATTEMPTS or waited + pause > self._patience:
                if failure is not None:
                    raise failure
                self._not_before[host] = self._clock.now().boottime + pause
                raise _later(url, pause)
            waited += pause
            await self._clock.sleep(pause)

    async def _ask(self, session: aiohttp.ClientSession, url: str) -> tuple[_Answer | None, float]:
        """Ask once: return an answer, or None and the seconds to wait."""
        with asking(url):
            async with session.get(url, allow_redirects=False) as got:
                body = await read_body(got, _SIZE_LIMIT)
                headers = dict(got.headers)
        if got.status in LATER:
            return None, retry_after(headers.get("Retry-After", ""), self._clock.now().wall)
        if got.status != HTTPStatus.OK or len(body) > _SIZE_LIMIT:
            failure = EndorsementUnavailableError(
                f"{url} answered with status {got.status} and {len(body)} bytes"
            )
            raise _UnknownThereError(failure) if got.status == HTTPStatus.NOT_FOUND else failure
        return _Answer(body=body, headers={k.lower(): v for k, v in headers.items()}), 0.0


def asker(url: str, clock: Clock) -> Callable[[str], Awaitable[tuple[int, bytes, float]]]:
    """Make a function that asks a publisher for a path, each time over a connection of its own.

    It returns the status, the body, and the seconds of a Retry-After.

    Raises (when called):
        EndorsementUnavailableError: it does not answer.
    """

    async def ask(path: str) -> tuple[int, bytes, float]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        with asking(url):
            async with (
                client_session(timeout=timeout) as session,
                session.get(f"{url}{path}", allow_redirects=False) as got,
            ):
                body = await read_body(got, _SIZE_LIMIT)
        return got.status, body, retry_after(got.headers.get("Retry-After", ""), clock.now().wall)

    return ask


def _later(url: str, seconds: float) -> EndorsementUnavailableError:
    return EndorsementUnavailableError(
        f"{url} asks us to try again later, in {seconds:.0f} s at the earliest",
        advice="run this again then; what is cached stays valid until its next update",
    )


def _holds(body: bytes, key: ec.EllipticCurvePublicKey) -> bool:
    """Say whether this key signed a TCB info, whatever the time."""
    try:
        read_tcb_info(signed_document(body, key=key, expected="tcbInfo", now=None))
    except EvidenceError:
        return False
    return True


def _chain(answer: _Answer, header: str) -> bytes:
    """Read a chain from a header: URL-encoded PEM."""
    value = answer.headers.get(header.lower(), "")
    # aiohttp gives bytes that are not UTF-8 as surrogates.
    return unquote_to_bytes(value.encode(errors="surrogateescape"))
