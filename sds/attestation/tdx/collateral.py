"""Reads the collateral of TDX quotes: TCB info, QE identity, revocation lists (PCCS API 4).

Owns the folder's form and the signature over a document. Invariant: a document is read only after
the signature over its exact bytes is verified under a TCB signing chain to a pinned root.

A folder contains Intel's answers: ``tcb_info.json`` and ``qe_identity.json`` (whole bodies),
``tcb_signing_chain.pem`` (of the header TCB-Info-Issuer-Chain), and revocation lists ``*.crl`` in
DER or PEM. A fleet of several kinds of platform has one ``tcb_info*.json`` for each.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sds.attestation.pem import der_revocation_lists
from sds.attestation.tdx.tcb import SignedDocument
from sds.errors import EvidenceError, EvidenceMalformedError
from sds.files import listed, read_file

if TYPE_CHECKING:
    from pathlib import Path

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
MAX_FILES: Final = 256
TCB_INFOS: Final = "tcb_info*.json"
QE_IDENTITY: Final = "qe_identity.json"
SIGNING_CHAIN: Final = "tcb_signing_chain.pem"
LISTS: Final = "*.crl"
_SIGNED: Final = re.compile(rb'\s*\{\s*"(tcbInfo|enclaveIdentity|tcbEvaluationDataNumbers)"\s*:\s*')
_SIGNATURE: Final = re.compile(rb'\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*')
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_ADVICE: Final = "fetch it from Intel's PCS or a PCCS, see docs/attestation.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """The files of a folder, unverified.

    Attributes:
        tcb_infos: file name and signed body, one for each kind of platform.
        qe_identity: the signed body.
        signing_chain: the chain in PEM, the TCB signing certificate first.
    """

    tcb_infos: tuple[tuple[str, bytes], ...] = field(repr=False)
    qe_identity: bytes = field(repr=False)
    signing_chain: bytes = field(repr=False)


def load_collateral(folder: Path) -> Collateral:
    """Read a folder of collateral.

    Raises:
        EvidenceError: ``collateral_missing``: a file is missing or cannot be read.
        EvidenceError: ``collateral_untrusted``: a file is too large, there are too many, or a
            list's PEM is broken.
    """
    infos = _files(folder, TCB_INFOS)
    if not infos:
        raise EvidenceError(
            f"collateral {folder / 'tcb_info.json'} is missing",
            reason="collateral_missing",
            advice=_ADVICE,
        )
    return Collateral(
        tcb_infos=tuple((str(path), _text(path)) for path in infos),
        qe_identity=_text(folder / QE_IDENTITY),
        signing_chain=_text(folder / SIGNING_CHAIN),
    )


def _text(path: Path) -> bytes:
    """Read a text, without the NUL with which Intel's quote provider library ends it."""
    return _read(path).rstrip(b"\0")


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        found = listed(folder, pattern)
    except OSError as error:
        raise EvidenceError(
            f"collateral {folder} cannot be read: {error.strerror}",
            reason="collateral_missing",
            advice=_ADVICE,
        ) from error
    if len(found) > MAX_FILES:
        raise EvidenceError(
            f"collateral {folder} has more than {MAX_FILES} files {pattern}",
            reason="collateral_untrusted",
        )
    return found


def load_lists(folder: Path) -> tuple[tuple[Path, bytes], ...]:
    """Return file and DER of every revocation list of a folder.

    Raises:
        EvidenceError: ``collateral_missing``: a file cannot be read. ``collateral_untrusted``: one
            is too large, or there are too many. ``revocation_list``: one has no list.
    """
    found: list[tuple[Path, bytes]] = []
    for path in _files(folder, LISTS):
        try:
            ders = der_revocation_lists(_read(path), what=str(path))
        except EvidenceMalformedError as error:
            raise EvidenceError(
                error.message, reason="revocation_list", advice=error.advice
            ) from error
        found += [(path, der) for der in ders]
    return tuple(found)


def _read(path: Path) -> bytes:
    try:
        return read_file(path, max_bytes=MAX_DOCUMENT_BYTES)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise EvidenceError(
                f"collateral {path} is larger than {MAX_DOCUMENT_BYTES} bytes",
                reason="collateral_untrusted",
            ) from error
        raise EvidenceError(
            f"collateral {path} cannot be read: {error.strerror}",
            reason="collateral_missing",
            advice=_ADVICE,
        ) from error


def signed_document(
    raw: bytes, *, key: ec.EllipticCurvePublicKey, expected: str, now: datetime | None
) -> SignedDocument:
    """Return the document inside a signed body, after verifying its exact bytes.

    Args:
        raw: ``{"tcbInfo": {…}, "signature": "…"}``, or ``enclaveIdentity`` or
            ``tcbEvaluationDataNumbers`` likewise.
        key: the key of the TCB signing certificate.
        expected: the name of the document.
        now: the time at which it must be valid; None leaves that check for later.

    Raises:
        EvidenceError: ``collateral_untrusted``: 1. it does not have this form; 2. the signature is
            invalid.
        EvidenceError: ``collateral_stale``: 3. it is not current.
    """
    # 1. The signature covers the document as it is written, so find where it begins and ends.
    start = _SIGNED.match(raw)
    if start is None or start[1].decode() != expected:
        raise EvidenceError(
            f"the collateral does not begin with {expected}", reason="collateral_untrusted"
        )
    try:
        text = raw[start.end() :].decode("utf-8")
        document, end = json.JSONDecoder(
            parse_constant=_no_number, object_pairs_hook=_once
        ).raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(
            f"{expected} is not JSON: {error}", reason="collateral_untrusted"
        ) from error
    exact = text[:end].encode()
    tail = _SIGNATURE.fullmatch(raw, start.end() + len(exact))
    if tail is None or not isinstance(document, dict):
        raise EvidenceError(
            f"{expected} is not followed by its signature alone", reason="collateral_untrusted"
        )
    # 2.
    signature = bytes.fromhex(tail[1].decode())
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), exact, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise EvidenceError(
            f"the signature over {expected} is invalid", reason="collateral_untrusted"
        ) from error
    # 3.
    issued, until = _moment(document, "issueDate"), _moment(document, "nextUpdate")
    if now is not None and not issued <= now <= until:
        raise EvidenceError(
            f"{expected} is valid from {issued:%FT%TZ} to {until:%FT%TZ}, and it is {now:%FT%TZ}",
            reason="collateral_stale",
            advice="fetch the newest one",
        )
    return SignedDocument(document)


def _no_number(text: str) -> NoReturn:
    # RFC 8259, section 6: there is no Infinity and no NaN in JSON.
    raise ValueError(f"{text} is not a number in JSON")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is given twice in one object")
    return found


def _moment(document: dict[str, object], name: str) -> datetime:
    value = document.get(name)
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise EvidenceError(
            f"{name} is not a time: {str(value)[:64]!r}", reason="collateral_untrusted"
        )
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise EvidenceError(
            f"{name} is not a time: {value!r}", reason="collateral_untrusted"
        ) from error
