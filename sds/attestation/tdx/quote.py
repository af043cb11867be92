"""Parses TDX quotes, versions 4 and 5 (Intel TDX DCAP Quoting Library API, appendix A.3).

Owns offsets. A quote of version 5 names the form of its body: 2 is TDX 1.0, 3 is TDX 1.5, and 4 is
TDX 1.5 with the fields about service TDs (ATTRIBUTES.SERVTD_EXT). Invariant: a :class:`Quote` is a
view of bytes; nothing in it was verified. A quote says how long it is; bytes after its end are not
part of it and are ignored, because hosts pad their buffers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from sds.errors import EvidenceError, EvidenceMalformedError

HEADER_BYTES: Final = 48
TEE_TYPE_TDX: Final = 0x81
ALGORITHM_ECDSA_P256: Final = 2
INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
BODY_1_0_BYTES: Final = 584
BODY_1_5_BYTES: Final = 648
BODY_SERVICE_TD_BYTES: Final = 885
QE_REPORT_BYTES: Final = 384
CERTIFICATION_PCK_CHAIN: Final = 5
CERTIFICATION_QE_REPORT: Final = 6
MAX_QUOTE_BYTES: Final = 128 * 1024
MAX_AUTHENTICATION_BYTES: Final = 1024
_VERSION_4: Final = 4
_VERSION_5: Final = 5
_BODIES: Final = {2: BODY_1_0_BYTES, 3: BODY_1_5_BYTES, 4: BODY_SERVICE_TD_BYTES}

DEBUG_BITS: Final = 0xFF
"""The bits of ATTRIBUTES.TUD: any set bit makes the TD untrusted; bit 0 is DEBUG."""
SEPT_VE_DISABLE: Final = 1 << 28
MIGRATABLE: Final = 1 << 29
# TUD; ICSSD (16), SERVTD_EXT (17); LASS, SEPT_VE_DISABLE, MIGRATABLE, PKS, KL (27 to 31); TPA,
# PERFMON (62, 63): the bits that Linux names (arch/x86/include/asm/shared/tdx.h), and SERVTD_EXT.
ATTRIBUTES_KNOWN: Final = DEBUG_BITS | 0x3 << 16 | 0x1F << 27 | 0x3 << 62


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTds:
    """The further fields of a body of type 4, about the service TDs that are bound to the TD."""

    vmid: int
    td_id: bytes
    device_info: bytes
    initial_hash: bytes
    initial_attributes: bytes
    initial_cpu_svn: bytes
    initial_tee_tcb_svn: bytes
    initial_fmspc: bytes
    current_hash: bytes
    current_attributes: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The body of a quote: what the TDX module says about the TD; names are Intel's.

    Attributes:
        tee_tcb_svn: the security versions of the TDX module that launched the TD.
        tee_tcb_svn_2: those of the module that runs now (TDX 1.5, TD-preserving updates), or None.
        mr_service_td: the hash over the bound service TDs, zero without any (TDX 1.5), or None.
        service_tds: the further fields of a body of type 4, or None.
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    attributes: int
    xfam: bytes
    mrtd: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmr: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn_2: bytes | None
    mr_service_td: bytes | None
    service_tds: ServiceTds | None

    @property
    def bound_service_td(self) -> bytes | None:
        """Return a hash of bound service TDs, or None if none is bound."""
        extended = self.service_tds
        hashes = (
            self.mr_service_td,
            extended.current_hash if extended else None,
            extended.initial_hash if extended else None,
        )
        return next((found for found in hashes if found is not None and any(found)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class QeReport:
    """The quoting enclave's report (SGX REPORTBODY)."""

    raw: bytes = field(repr=False)
    misc_select: bytes
    attributes: bytes
    mr_signer: bytes
    product_id: int
    security_version: int
    report_data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A TDX quote, unverified.

    Attributes:
        version: 4 or 5.
        signed: header and body, which the attestation key signed.
        body: what is said about the TD.
        signature: R and S, each 32 bytes, big-endian.
        attestation_key: X and Y on P-256, each 32 bytes, big-endian.
        qe_report: the quoting enclave's report, which vouches for the attestation key.
        qe_signature: R and S of the PCK's signature over that report.
        authentication: the data that is hashed with the attestation key.
        pck_chain: the PCK chain as PEM text, leaf first.
        trailing: the bytes after the end.
    """

    version: int
    vendor: bytes
    signed: bytes = field(repr=False)
    body: TdReport
    signature: bytes = field(repr=False)
    attestation_key: bytes = field(repr=False)
    qe_report: QeReport
    qe_signature: bytes = field(repr=False)
    authentication: bytes = field(repr=False)
    pck_chain: bytes = field(repr=False)
    trailing: int


class _Reader:
    """Takes bytes off the front, and never reads past the end."""

    def __init__(self, raw: bytes, what: str) -> None:
        self._raw = raw
        self._what = what
        self.offset = 0

    def take(self, size: int, name: str) -> bytes:
        end = self.offset + size
        if end > len(self._raw):
            raise EvidenceMalformedError(
                f"{self._what}: {name} needs {size} bytes at {self.offset}, and "
                f"{len(self._raw) - self.offset} are left"
            )
        taken = self._raw[self.offset : end]
        self.offset = end
        return taken

    def number(self, size: int, name: str) -> int:
        return int.from_bytes(self.take(size, name), "little")

    def end(self) -> None:
        if self.offset != len(self._raw):
            raise EvidenceMalformedError(
                f"{self._what}: {len(self._raw) - self.offset} bytes are left over"
            )


def parse_quote(raw: bytes) -> Quote:
    """Parse a quote.

    Raises:
        EvidenceMalformedError: it is cut short, or an inner length is wrong.
        EvidenceMalformedError: ``report_version``: its version, TEE or kind of body is unknown.
        EvidenceError: ``signature_algorithm``: it is not ECDSA P-256.
    """
    if len(raw) > MAX_QUOTE_BYTES:
        raise EvidenceMalformedError(f"a quote longer than {MAX_QUOTE_BYTES} bytes")
    reader = _Reader(raw, "quote")
    header = reader.take(HEADER_BYTES, "header")
    version, algorithm, tee = struct.unpack_from("<HHI", header)
    if version not in {_VERSION_4, _VERSION_5}:
        raise EvidenceMalformedError(
            f"the quote has version {version}; known are 4 and 5", reason="report_version"
        )
    if tee != TEE_TYPE_TDX:
        raise EvidenceMalformedError(
            f"TEE type {tee:#x} is not TDX ({TEE_TYPE_TDX:#x})", reason="report_version"
        )
    if algorithm != ALGORITHM_ECDSA_P256:
        raise EvidenceError(
            f"attestation key type {algorithm} is not ECDSA P-256 ({ALGORITHM_ECDSA_P256})",
            reason="signature_algorithm",
        )
    size = BODY_1_0_BYTES
    if version == _VERSION_5:
        kind = reader.number(2, "type of body")
        size = reader.number(4, "size of body")
        if _BODIES.get(kind) != size:
            raise EvidenceMalformedError(
                f"a body of type {kind} and {size} bytes is not TDX's",
                reason="report_version",
                advice="known are the types 2, 3 and 4 of 584, 648 and 885 bytes",
            )
    body = _body(reader.take(size, "body"))
    signed = raw[: reader.offset]
    inner = _Reader(
        reader.take(reader.number(4, "size of signature data"), "signature data"), "signature data"
    )
    signature = inner.take(64, "signature")
    key = inner.take(64, "attestation key")
    if (kind := inner.number(2, "type of certification data")) != CERTIFICATION_QE_REPORT:
        raise EvidenceMalformedError(f"certification data of type {kind}, not 6 (QE report)")
    outer = _Reader(inner.take(inner.number(4, "its size"), "certification data"), "certification")
    inner.end()
    qe_raw = outer.take(QE_REPORT_BYTES, "QE report")
    qe_signature = outer.take(64, "QE report signature")
    length = outer.number(2, "size of authentication data")
    if length > MAX_AUTHENTICATION_BYTES:
        raise EvidenceMalformedError(f"{length} bytes of authentication data")
    authentication = outer.take(length, "authentication data")
    if (kind := outer.number(2, "type of PCK data")) != CERTIFICATION_PCK_CHAIN:
        raise EvidenceMalformedError(f"PCK data of type {kind}, not 5 (certificate chain)")
    chain = outer.take(outer.number(4, "its size"), "PCK chain")
    outer.end()
    return Quote(
        version=version,
        vendor=header[12:28],
        signed=signed,
        body=body,
        signature=signature,
        attestation_key=key,
        qe_report=_qe_report(qe_raw),
        qe_signature=qe_signature,
        authentication=authentication,
        pck_chain=chain,
        trailing=len(raw) - reader.offset,
    )


def _body(raw: bytes) -> TdReport:
    return TdReport(
        tee_tcb_svn=raw[0:16],
        mr_seam=raw[16:64],
        mr_signer_seam=raw[64:112],
        seam_attributes=raw[112:120],
        attributes=int.from_bytes(raw[120:128], "little"),
        xfam=raw[128:136],
        mrtd=raw[136:184],
        mr_config_id=raw[184:232],
        mr_owner=raw[232:280],
        mr_owner_config=raw[280:328],
        rtmr=(raw[328:376], raw[376:424], raw[424:472], raw[472:520]),
        report_data=raw[520:584],
        tee_tcb_svn_2=raw[584:600] if len(raw) >= BODY_1_5_BYTES else None,
        mr_service_td=raw[600:648] if len(raw) >= BODY_1_5_BYTES else None,
        service_tds=_service_tds(raw) if len(raw) == BODY_SERVICE_TD_BYTES else None,
    )


def _service_tds(raw: bytes) -> ServiceTds:
    return ServiceTds(
        vmid=raw[648],
        td_id=raw[649:681],
        device_info=raw[681:729],
        initial_hash=raw[729:777],
        initial_attributes=raw[777:785],
        initial_cpu_svn=raw[785:801],
        initial_tee_tcb_svn=raw[801:817],
        initial_fmspc=raw[817:829],
        current_hash=raw[829:877],
        current_attributes=raw[877:885],
    )


def _qe_report(raw: bytes) -> QeReport:
    return QeReport(
        raw=raw,
        misc_select=raw[16:20],
        attributes=raw[48:64],
        mr_signer=raw[128:160],
        product_id=int.from_bytes(raw[256:258], "little"),
        security_version=int.from_bytes(raw[258:260], "little"),
        report_data=raw[320:384],
    )


def require_known_attributes(body: TdReport) -> None:
    """Check that no reserved bit is set (TDX module ABI, ATTRIBUTES).

    Raises:
        EvidenceMalformedError: ``reserved_bytes``: one of them is set.
    """
    if unknown := body.attributes & ~ATTRIBUTES_KNOWN:
        raise EvidenceMalformedError(
            f"reserved bits of the TD's attributes are set: {unknown:#x}", reason="reserved_bytes"
        )
