"""Collateral of TDX quotes: TCB info and QE identity, signed by Intel (PCCS API, version 4).

Owns what such a document says and which TCB level a platform has. Invariant: a document is read
only after the signature over its exact bytes held under a TCB signing chain to a pinned root.

A folder holds what Intel's API answers: ``tcb_info.json`` and ``qe_identity.json`` (whole
bodies), ``tcb_signing_chain.pem`` (of the header TCB-Info-Issuer-Chain), and revocation lists
``*.crl`` in DER or PEM.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from sds.attestation.pem import der_revocation_lists
from sds.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sds.attestation.tdx.pck import Pck

MAX_DOCUMENT_BYTES: Final = 1024 * 1024
_SIGNED: Final = re.compile(rb'\s*\{\s*"(tcbInfo|enclaveIdentity)"\s*:\s*')
_SIGNATURE: Final = re.compile(rb'\s*,\s*"signature"\s*:\s*"([0-9a-fA-F]{128})"\s*\}\s*')
_TCB_INFO_VERSION: Final = 3
_QE_IDENTITY_VERSION: Final = 2
_COMPONENTS: Final = 16
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Files of a folder, unverified."""

    tcb_info: bytes
    qe_identity: bytes
    signing_chain: bytes
    revocation_lists: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbLevel:
    """What a document says of the level that matched.

    Attributes:
        status: Intel's word, such as UpToDate.
        advisories: INTEL-SA numbers.
        date: tcbDate, as it stands there.
    """

    status: str
    advisories: tuple[str, ...]
    date: str


def load_collateral(folder: Path) -> Collateral:
    """Read a folder of collateral.

    Raises:
        EvidenceError: ``collateral_missing``: a file is missing or cannot be read.
        EvidenceError: ``collateral_untrusted``: a file is too large, or a revocation list is
            broken.
    """
    try:
        lists = [
            der
            for path in sorted(folder.glob("*.crl"))
            for der in der_revocation_lists(_read(path), what=path.name)
        ]
    except EvidenceError as error:
        if error.reason.startswith("collateral_"):
            raise
        raise EvidenceError(error.message, reason="collateral_untrusted") from error
    return Collateral(
        tcb_info=_read(folder / "tcb_info.json"),
        qe_identity=_read(folder / "qe_identity.json"),
        signing_chain=_read(folder / "tcb_signing_chain.pem"),
        revocation_lists=tuple(lists),
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as error:
        raise EvidenceError(
            f"collateral {path} cannot be read: {error.strerror}",
            advice="fetch it from Intel's PCS or a PCCS, see docs/attestation.md",
            reason="collateral_missing",
        ) from error
    if len(content) > MAX_DOCUMENT_BYTES:
        raise EvidenceError(
            f"collateral {path} is larger than {MAX_DOCUMENT_BYTES} bytes",
            reason="collateral_untrusted",
        )
    return content


def signed_document(
    raw: bytes, *, key: ec.EllipticCurvePublicKey, expected: str, now: datetime
) -> Mapping[str, Any]:
    """The document inside a signed body, verified over its exact bytes.

    Args:
        raw: ``{"tcbInfo": {…}, "signature": "…"}``, or ``enclaveIdentity`` likewise.
        key: of the TCB signing certificate.
        expected: the name of the document.
        now: the time at which it must count.

    Raises:
        EvidenceError: ``collateral_untrusted``: 1. not of this form; 2. the signature does not
            hold; 3. another kind or version than TDX's.
        EvidenceError: ``collateral_stale``: 4. it is not current.
    """
    # 1. The signature covers the document as it is written: find where it begins and ends.
    start = _SIGNED.match(raw)
    if start is None or start[1].decode() != expected:
        raise EvidenceError(
            f"the collateral does not begin with {expected}", reason="collateral_untrusted"
        )
    try:
        text = raw[start.end() :].decode("utf-8")
        document, end = json.JSONDecoder().raw_decode(text)
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
            f"the signature over {expected} does not hold", reason="collateral_untrusted"
        ) from error
    # 3.
    identity, version = (
        ("TDX", _TCB_INFO_VERSION) if expected == "tcbInfo" else ("TD_QE", _QE_IDENTITY_VERSION)
    )
    if document.get("id") != identity or document.get("version") != version:
        raise EvidenceError(
            f"{expected} has id {document.get('id')!r}, version {document.get('version')!r}; "
            f"{identity!r}, {version} are expected",
            reason="collateral_untrusted",
        )
    # 4.
    issued, until = _moment(document, "issueDate"), _moment(document, "nextUpdate")
    if not issued <= now <= until:
        raise EvidenceError(
            f"{expected} counts from {issued:%FT%TZ} to {until:%FT%TZ}, the time is {now:%FT%TZ}",
            advice="fetch the newest one",
            reason="collateral_stale",
        )
    return document


def platform_level(document: Mapping[str, Any], pck: Pck, tee_tcb_svn: bytes) -> TcbLevel:
    """The first TCB level that the platform reaches (PCCS API: "Determining TCB status").

    Every SGX component of the PCK, its PCE security version and every TDX component of the quote
    must reach the level's. With a TDX module of 1.5 or later the first two TDX components are the
    module's own, and are compared in :func:`module_level`.

    Raises:
        EvidenceError: ``tcb_status``: it reaches none.
        EvidenceError: ``collateral_untrusted``: the document is not of its form.
    """
    first = 2 if tee_tcb_svn[1] > 0 else 0
    try:
        for level in document["tcbLevels"]:
            tcb = level["tcb"]
            sgx = [int(entry["svn"]) for entry in tcb["sgxtcbcomponents"]]
            tdx = [int(entry["svn"]) for entry in tcb["tdxtcbcomponents"]]
            if len(sgx) != _COMPONENTS or len(tdx) != _COMPONENTS:
                raise EvidenceError(
                    "a TCB level without 16 components", reason="collateral_untrusted"
                )
            reached = (
                all(have >= need for have, need in zip(pck.components, sgx, strict=True))
                and pck.pce_svn >= int(tcb["pcesvn"])
                and all(tee_tcb_svn[index] >= tdx[index] for index in range(first, _COMPONENTS))
            )
            if reached:
                return _level(level)
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError(
            f"tcbInfo is not of its form: {error!r}", reason="collateral_untrusted"
        ) from error
    raise EvidenceError("the platform reaches no TCB level of the collateral", reason="tcb_status")


def module_level(
    document: Mapping[str, Any], *, tee_tcb_svn: bytes, mr_signer: bytes, attributes: bytes
) -> TcbLevel | None:
    """The TDX module's level; None for modules before 1.5, which have none of their own.

    Raises:
        EvidenceError: ``collateral_untrusted``: the module is unknown, its signer or attributes
            differ, or it reaches no level.
    """
    version, svn = tee_tcb_svn[1], tee_tcb_svn[0]
    try:
        if version == 0:
            identity = document["tdxModule"]
        else:
            identity = next(
                (
                    entry
                    for entry in document["tdxModuleIdentities"]
                    if entry["id"] == f"TDX_{version:02X}"
                ),
                None,
            )
        if identity is None:
            raise EvidenceError(
                f"the collateral knows no TDX module of version {version}",
                reason="collateral_untrusted",
            )
        mask = bytes.fromhex(identity["attributesMask"])
        wanted = bytes.fromhex(identity["attributes"])
        if mr_signer != bytes.fromhex(identity["mrsigner"]):
            raise EvidenceError(
                "the TDX module's signer is another one", reason="collateral_untrusted"
            )
        if masked(attributes, mask) != wanted:
            raise EvidenceError(
                "the TDX module's attributes are others", reason="collateral_untrusted"
            )
        if version == 0:
            return None
        for level in identity["tcbLevels"]:
            if svn >= int(level["tcb"]["isvsvn"]):
                return _level(level)
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError(
            f"tcbInfo is not of its form: {error!r}", reason="collateral_untrusted"
        ) from error
    raise EvidenceError(
        f"the TDX module's security version {svn} reaches no level", reason="collateral_untrusted"
    )


def masked(value: bytes, mask: bytes) -> bytes:
    """``value`` with the bits of ``mask`` alone.

    Raises:
        ValueError: they are not of one length.
    """
    return bytes(have & keep for have, keep in zip(value, mask, strict=True))


def enclave_level(document: Mapping[str, Any], security_version: int) -> TcbLevel:
    """The quoting enclave's level.

    Raises:
        EvidenceError: ``collateral_untrusted``: it reaches none, or the document is not of its
            form.
    """
    try:
        for level in document["tcbLevels"]:
            if security_version >= int(level["tcb"]["isvsvn"]):
                return _level(level)
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError(
            f"enclaveIdentity is not of its form: {error!r}", reason="collateral_untrusted"
        ) from error
    raise EvidenceError(
        f"the quoting enclave's version {security_version} reaches no level",
        reason="collateral_untrusted",
    )


def _level(level: Mapping[str, Any]) -> TcbLevel:
    return TcbLevel(
        status=str(level["tcbStatus"]),
        advisories=tuple(map(str, level.get("advisoryIDs", ()))),
        date=str(level["tcbDate"]),
    )


def _moment(document: Mapping[str, Any], name: str) -> datetime:
    value = document.get(name)
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise EvidenceError(f"{name} is no time: {value!r}", reason="collateral_untrusted")
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except ValueError as error:
        raise EvidenceError(
            f"{name} is no time: {value!r}", reason="collateral_untrusted"
        ) from error
