"""Serves public collateral as its publishers do, to a fleet (PCS 4, AMD 57230).

Owns the answer to each request. Invariants: an answer is the content of files in force, or a VCEK
whose chain was verified; no file that a caller names is opened; a separate task asks for missing
VCEKs, one after the other, and the caller is told to try again later; owners of callers have turns
(:mod:`sds.attestation.collateral.wanted_by_owners`), so that none keeps the VCEKs of others
waiting, and a VCEK has one name. Answers add no trust: callers verify them like the publisher's
own. An answer is made once, when the files change, and not for each caller, because a fleet that
starts at once asks for the same ones.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import PurePath
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, quote

from sds import threads
from sds.attestation.collateral.publisher_answers import AFTER_FAILURE
from sds.attestation.collateral.wanted_by_owners import WantedByOwners
from sds.attestation.snp.chain import amd_certificates, link, pinned_roots
from sds.attestation.snp.kind import is_amd_root
from sds.attestation.snp.leaf import read_leaf
from sds.attestation.snp.report import Product, Tcb
from sds.attestation.snp.sources import ANSWER_SECONDS, is_vcek_target, vcek_target
from sds.attestation.tdx.collateral import QE_IDENTITY
from sds.backoff import LATER, uniform
from sds.errors import EvidenceError
from sds.files import listed, read_file, replace_file
from sds.pki import certificate_pem
from sds.untrusted_input import words_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from sds.attestation.collateral.followed_files import InForce
    from sds.attestation.snp.certificate import Certificate
    from sds.clock import Clock

_LOGGER = logging.getLogger(__name__)
AGAIN_SECONDS: Final = 4
"""How many seconds a caller is told to wait while its VCEK is being fetched."""
MAX_KEPT: Final = 20_000
"""VCEKs, in memory and in the folder: there is one for each chip and each of its very many TCBs."""
_MAX_DER: Final = 16 * 1024
_VCEKS: Final = "/vcek/v1/"
_ROOT_LIST: Final = "root.crl"
_NUMBER: Final = "tcbEvaluationDataNumber"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedAnswer:
    """An answer: status, body, headers."""

    status: int = HTTPStatus.OK
    body: bytes = field(default=b"", repr=False)
    headers: tuple[tuple[str, str], ...] = ()


_ABSENT: Final = PublishedAnswer(status=HTTPStatus.NOT_FOUND, body=b"not here\n")


class PublishedCollateral:
    """Answers in the layout of Intel's PCS and AMD's KDS.

    Args:
        files: what is in force now.
        ask: asks AMD's service, or a cache, for a path with its query; returns status, body, and
            the seconds for which the service wants to be left alone.
        folder: keeps VCEKs.
        clock: makes the pauses.
        roots: configured roots beside the manufacturers', in DER.
        certificates: configured issuers in DER; AMD's own ship with the program.
        spacing: seconds between two requests to AMD.
    """

    def __init__(
        self,
        files: Callable[[], InForce],
        ask: Callable[[str], Awaitable[tuple[int, bytes, float]]],
        folder: Path,
        *,
        clock: Clock,
        roots: Iterable[bytes] = (),
        certificates: Iterable[bytes] = (),
        spacing: float,
    ) -> None:
        self._files = files
        self._ask = ask
        self._folder = folder
        self._clock = clock
        self._roots = pinned_roots(
            trusted_roots=filter(is_amd_root, roots),
            helpers=(*certificates, *(one.der for one in amd_certificates())),
        )
        self._spacing = spacing
        self._issuers = {
            product.certificate_name: _issuers(product, self._roots.certificates)
            for product in Product
        }
        self._made: tuple[InForce, dict[str, PublishedAnswer]] | None = None
        self._kept: dict[str, bytes] = {}
        self._wanted = WantedByOwners()

    def answer(self, path: str, query: str, *, owner: str) -> PublishedAnswer:
        """Return the answer to a GET of a path; ``owner`` asks: an address or network."""
        if path.startswith(_VCEKS):
            return self._amd(path.removeprefix(_VCEKS), query, owner)
        asked = parse_qs(query)
        match path:
            case "/sgx/certification/v4/pckcrl":
                name = f"pck-{_first(asked, 'ca')}.crl"
            case "/sgx/certification/v4/rootcacrl":
                name = _ROOT_LIST
            case "/tdx/certification/v4/qe/identity":
                name = QE_IDENTITY
            case "/tdx/certification/v4/tcb":
                name = f"tcb_info-{_first(asked, 'fmspc').lower()}.json"
            case _:
                return _ABSENT
        if number := _first(asked, _NUMBER):
            name = f"{number}/{name}"  # the file of that TCB recovery, if there is one
        return self._answers().get(name, _ABSENT)

    def _answers(self) -> dict[str, PublishedAnswer]:
        """Return the answers that the files in force give, by the name of the file."""
        files = self._files()
        if self._made is None or self._made[0] is not files:
            self._made = (files, dict(_answers_of(files)))
        return self._made[1]

    def _amd(self, rest: str, query: str, owner: str) -> PublishedAnswer:
        name, _, what = rest.partition("/")
        if what == "crl":
            return self._answers().get(f"{name.lower()}.crl", _ABSENT)
        if what == "cert_chain":
            return self._issuers.get(name, _ABSENT)
        target = f"{_VCEKS}{rest}?{query}"
        if (der := self._kept.get(target)) is not None:
            return PublishedAnswer(body=der)
        if not is_vcek_target(target):
            return _ABSENT
        self._wanted.add(target, owner)
        return _later()

    async def run(self) -> None:
        """Ask for VCEKs, one after the other, until cancelled."""
        await threads.KEPT_ENDORSEMENTS.run(self._load)
        failures = 0
        while True:
            target = await self._wanted.next()
            if target in self._kept:  # it was stored after somebody asked for it
                continue
            later = await self._fetch(target)
            pause, failures = 0.0, 0 if later is None else failures + 1
            if later is not None:
                pause = max(later, AFTER_FAILURE.seconds(failures, draw=uniform()))
            await self._clock.sleep(max(self._spacing, pause))

    async def _fetch(self, target: str) -> float | None:
        """Fetch a certificate.

        Returns:
            None if the publisher answered, with or without a certificate; else the seconds for
            which it wants to be left alone.
        """
        try:
            status, body, later = await self._ask(target)
        except EvidenceError as error:
            _LOGGER.warning("a VCEK cannot be fetched: %s", error, extra={"reason": error.reason})
            return 0.0
        if status in LATER or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            _LOGGER.warning("AMD's service asks us to try again later", extra={"status": status})
            return later
        try:
            self._verify(target, body)
        except EvidenceError as error:
            _LOGGER.warning("an answer is not the VCEK of that chip: %s", error)
            return None
        dropped = self._keep(target, body)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await threads.KEPT_ENDORSEMENTS.run(self._store, target, body, dropped)
        except TimeoutError as error:
            _LOGGER.warning("a VCEK cannot be stored on disk: %s", words_of(error))
        return None

    def _verify(self, target: str, der: bytes) -> None:
        """Require a VCEK of this chip under a pinned root."""
        leaf = read_leaf(der)
        link(leaf, (), self._roots)
        chip = leaf.hardware_id
        if chip is None or vcek_target(leaf.product, chip, Tcb(leaf.tcb)) != target:
            raise EvidenceError(
                "the answer is the certificate of another chip or TCB",
                reason="endorsement_chip_mismatch",
            )

    def _keep(self, target: str, der: bytes) -> list[str]:
        """Keep a certificate, and return those that are not kept any more."""
        dropped = []
        while len(self._kept) >= MAX_KEPT:
            dropped.append(next(iter(self._kept)))
            del self._kept[dropped[-1]]
        self._kept[target] = der
        return dropped

    def _load(self) -> None:
        try:
            paths = listed(self._folder, "*.vcek")
        except OSError:
            return
        _remove(paths[MAX_KEPT:])
        for path in paths[:MAX_KEPT]:
            try:
                target, _, der = read_file(path, max_bytes=_MAX_DER).partition(b"\n")
                self._verify(target.decode(), der)
            except (OSError, ValueError, EvidenceError) as error:
                _LOGGER.warning("a stored VCEK is ignored: %s: %s", path, words_of(error))
            else:
                self._keep(target.decode(), der)

    def _store(self, target: str, der: bytes, dropped: Iterable[str]) -> None:
        _remove(map(self._path, dropped))
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(self._path(target), target.encode() + b"\n" + der, mode=0o644)
        except OSError as error:
            _LOGGER.warning("a VCEK cannot be stored on disk: %s", words_of(error))

    def _path(self, target: str) -> Path:
        return self._folder / f"{hashlib.sha256(target.encode()).hexdigest()}.vcek"


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _LOGGER.warning("a VCEK cannot be removed from disk: %s", words_of(error))


def _first(asked: Mapping[str, Sequence[str]], name: str) -> str:
    return asked.get(name, ("",))[0]


def _answers_of(files: InForce) -> Iterator[tuple[str, PublishedAnswer]]:
    """Return each file's name and its answer; the first of equal names counts."""
    for one in reversed(files.lists):
        name = PurePath(one.origin).name
        # A PCCS gives the root's list in hexadecimal.
        yield name, PublishedAnswer(body=one.der.hex().encode() if name == _ROOT_LIST else one.der)
    collateral = files.intel.collateral
    if collateral is None:
        return
    chain = quote(collateral.signing_chain)
    documents = [
        ("TCB-Info-Issuer-Chain", PurePath(origin).name, body)
        for origin, body in reversed(collateral.tcb_infos)
    ]
    documents.append(("SGX-Enclave-Identity-Issuer-Chain", QE_IDENTITY, collateral.qe_identity))
    for header, name, body in documents:
        answer = PublishedAnswer(body=body, headers=((header, chain),))
        yield name, answer
        yield f"{_number_of(body)}/{name}", answer


def _number_of(body: bytes) -> str:
    """Return the document's TcbEvaluationDataNumber; the caller verifies the document."""
    try:
        (document,) = (part for part in json.loads(body).values() if isinstance(part, dict))
        return str(document[_NUMBER])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ""


def _issuers(product: Product, certificates: Iterable[Certificate]) -> PublishedAnswer:
    """Return ASK and ARK of a product, as PEM."""
    name = product.certificate_name
    chain = [one for one in certificates if one.common_name in {f"SEV-{name}", f"ARK-{name}"}]
    chain.sort(key=lambda one: one.common_name, reverse=True)
    unique = dict.fromkeys(one.der for one in chain)
    return PublishedAnswer(body=certificate_pem(list(unique))) if unique else _ABSENT


def _later() -> PublishedAnswer:
    return PublishedAnswer(
        status=HTTPStatus.SERVICE_UNAVAILABLE, headers=(("Retry-After", str(AGAIN_SECONDS)),)
    )
