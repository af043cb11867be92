"""Formats that this program describes but does not verify.

Owns the layouts of what is often given in place of evidence: the blob of an Azure paravisor (HCL),
which wraps a hardware report and the runtime data that it vouches for; SGX quotes; TDREPORTs; an
SNP report with other bytes around it; evidence written as text. Invariant: only offsets within the
given bytes are read.
"""

from __future__ import annotations

import base64
import contextlib
import struct
from dataclasses import dataclass, field
from typing import Final

from sds.attestation.snp.report import (
    ALGORITHM_ECDSA_P384_SHA384,
    KNOWN_VERSIONS,
    REPORT_BYTES,
    GuestPolicy,
)
from sds.errors import EvidenceMalformedError

HCL_MAGIC: Final = b"HCLA"
_REPORT_OFFSET: Final = 0x20
# After the report: size, version, type of report, type of hash, size of the JSON (OpenHCL,
# IgvmAttestRequestData).
_RUNTIME: Final = struct.Struct("<IIIII")
_RUNTIME_OFFSET: Final = _REPORT_OFFSET + REPORT_BYTES
# Version -> bytes between those and the JSON (IgvmAttestRequestDataExt, since version 2).
_EXTENSION_BYTES: Final = {1: 0, 2: 4}
# OpenHCL, IgvmAttestReportType.
_REPORT_TYPES: Final = {2: "sev-snp", 4: "tdx"}
_OTHER_REPORT_TYPES: Final = {
    1: "a VM that the hypervisor isolates (VBS)",
    3: "a trusted launch VM, which has no confidential hardware",
    5: "an Arm CCA realm",
}
_TD_REPORT_BYTES: Final = 1024
_TD_REPORT_TYPE: Final = 0x81
_ALGORITHM_OFFSET: Final = 0x34
_ANSWER: Final = struct.pack("<II", 0, REPORT_BYTES)
_ANSWER_REPORT_OFFSET: Final = 0x20
_TD_INFO: Final = 512
_SGX_HEADER_BYTES: Final = 48
_SGX_BODY_BYTES: Final = 384
_SGX_VERSIONS: Final = range(2, 5)
_SGX_NAMED_BODY_VERSION: Final = 5
_SGX_NAMED_BODY: Final = struct.pack("<HI", 1, _SGX_BODY_BYTES)
_SGX_KEY_TYPES: Final = {0: "EPID", 1: "EPID", 2: "ECDSA P-256", 3: "ECDSA P-384"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HclBlob:
    """An Azure paravisor's blob, parsed.

    Attributes:
        kind: the kind of the hardware report: ``sev-snp`` or ``tdx``.
        report: an SNP report (1184 bytes) or a TDREPORT (1024 bytes).
        runtime: the JSON whose hash is the hardware report's report data.
        hash_type: 1 is SHA-256, 2 SHA-384, 3 SHA-512.
    """

    kind: str
    report: bytes = field(repr=False)
    runtime: bytes = field(repr=False)
    hash_type: int


def parse_hcl(raw: bytes) -> HclBlob:
    """Parse an Azure paravisor's blob.

    Raises:
        EvidenceMalformedError: it is cut short, or the type of its report or the version of its
            runtime data is unknown.
    """
    if len(raw) < _RUNTIME_OFFSET + _RUNTIME.size or not raw.startswith(HCL_MAGIC):
        raise EvidenceMalformedError(
            f"an Azure paravisor's blob has {_RUNTIME_OFFSET + _RUNTIME.size} bytes at least, "
            f"this one {len(raw)}",
            advice="read all of NV index 0x01400001",
        )
    _, version, kind, hash_type, size = _RUNTIME.unpack_from(raw, _RUNTIME_OFFSET)
    name = _REPORT_TYPES.get(kind)
    if name is None:
        raise EvidenceMalformedError(
            f"an Azure paravisor's blob with a report of type {kind}: "
            + _OTHER_REPORT_TYPES.get(kind, "unknown"),
            advice="known are 2 (SEV-SNP) and 4 (TDX); a VM without either can use the kind tpm",
        )
    if version not in _EXTENSION_BYTES:
        raise EvidenceMalformedError(
            f"an Azure paravisor's blob whose runtime data is of version {version}",
            advice="known are 1 and 2: this paravisor is newer than this release",
        )
    start = _RUNTIME_OFFSET + _RUNTIME.size + _EXTENSION_BYTES[version]
    if start + size > len(raw):
        raise EvidenceMalformedError(
            f"an Azure paravisor's blob of {len(raw)} bytes with {size} bytes of runtime data at "
            f"{start} is cut short",
            advice="read all of NV index 0x01400001",
        )
    length = REPORT_BYTES if name == "sev-snp" else _TD_REPORT_BYTES
    return HclBlob(
        kind=name,
        report=raw[_REPORT_OFFSET : _REPORT_OFFSET + length],
        runtime=raw[start : start + size],
        hash_type=hash_type,
    )


def describe_td_report(raw: bytes) -> dict[str, str]:
    """Describe a TDREPORT as text (TDX module ABI, TDREPORT_STRUCT), which proves nothing here."""
    info = raw[_TD_INFO:]
    return {
        "report_data": raw[128:192].hex(),
        "tee_tcb_svn": raw[264:280].hex(),
        "mr_seam": raw[280:328].hex(),
        "td_attributes": f"{int.from_bytes(info[0:8], 'little'):#018x}",
        "xfam": info[8:16].hex(),
        "mrtd": info[16:64].hex(),
        "mr_config_id": info[64:112].hex(),
        "mr_owner": info[112:160].hex(),
        "mr_owner_config": info[160:208].hex(),
        **{f"rtmr{index}": info[208 + 48 * index : 256 + 48 * index].hex() for index in range(4)},
    }


def is_td_report(raw: bytes) -> bool:
    """Say whether these bytes are a TDREPORT (TDX module ABI, REPORTTYPE) and not a quote."""
    return len(raw) == _TD_REPORT_BYTES and raw[0] == _TD_REPORT_TYPE and not raw[3]


def is_snp_report(raw: bytes) -> bool:
    """Say whether these bytes begin like an SEV-SNP report, of any length (56860, table 23)."""
    if len(raw) < _ALGORITHM_OFFSET + 4:
        return False
    version, _, policy = struct.unpack_from("<IIQ", raw)
    (algorithm,) = struct.unpack_from("<I", raw, _ALGORITHM_OFFSET)
    return (
        version in KNOWN_VERSIONS
        and algorithm == ALGORITHM_ECDSA_P384_SHA384
        and bool(policy & GuestPolicy.RESERVED_ONE)
    )


def snp_report_within(raw: bytes) -> int | None:
    """Return where these bytes contain an SNP report that is not alone or is cut short, else None.

    It comes first if a host's certificates follow, and after 32 bytes in the firmware's answer
    (MSG_REPORT_RSP, 56860, table 26).
    """
    if is_snp_report(raw):
        return 0
    if raw.startswith(_ANSWER) and is_snp_report(raw[_ANSWER_REPORT_OFFSET:]):
        return _ANSWER_REPORT_OFFSET
    return None


def from_text(raw: bytes) -> tuple[str, bytes] | None:
    """Return how a text encodes bytes, and the bytes; None if it does not.

    It may be base64 in both alphabets (RFC 4648, sections 4 and 5), with or without padding, or
    hexadecimal; white space and quotation marks around it are ignored.
    """
    text = b"".join(raw.split()).strip(b"\"'")
    if not text or not text.isascii():
        return None
    with contextlib.suppress(ValueError):
        return "hexadecimal", bytes.fromhex(text.decode())
    with contextlib.suppress(ValueError):
        text = text.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        return "base64", base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    return None


def is_sgx_quote(raw: bytes) -> bool:
    """Say whether these bytes begin like a quote of an SGX enclave.

    Since version 5, a quote names the form of its body, and 1 is an enclave's. An SNP report of
    version 3 or 4 begins like an EPID quote.
    """
    if len(raw) < _SGX_HEADER_BYTES + _SGX_BODY_BYTES or len(raw) == REPORT_BYTES:
        return False
    if is_snp_report(raw):
        return False
    version, key_type, tee = struct.unpack_from("<HHI", raw)
    if key_type not in _SGX_KEY_TYPES or tee != 0:
        return False
    named = raw[_SGX_HEADER_BYTES:].startswith(_SGX_NAMED_BODY)
    return version in _SGX_VERSIONS or (version == _SGX_NAMED_BODY_VERSION and named)


def describe_sgx_quote(raw: bytes) -> dict[str, str]:
    """Describe an SGX quote as text (Intel SGX ECDSA Quote Library API, appendix A.4).

    Raises:
        EvidenceMalformedError: it is cut short.
    """
    version, key_type, _ = struct.unpack_from("<HHI", raw)
    named = len(_SGX_NAMED_BODY) if version == _SGX_NAMED_BODY_VERSION else 0
    body = raw[_SGX_HEADER_BYTES + named :]
    if len(body) < _SGX_BODY_BYTES:
        raise EvidenceMalformedError(f"an SGX quote of {len(raw)} bytes is cut short")
    attributes = body[48:64]
    return {
        "quote_version": str(version),
        "attestation_key": _SGX_KEY_TYPES[key_type],
        "mr_enclave": body[64:96].hex(),
        "mr_signer": body[128:160].hex(),
        "isv_prod_id": str(int.from_bytes(body[256:258], "little")),
        "isv_svn": str(int.from_bytes(body[258:260], "little")),
        "debug": "true" if attributes[0] & 2 else "false",
        "attributes": attributes.hex(),
        "cpu_svn": body[0:16].hex(),
        "report_data": body[320:384].hex(),
    }
