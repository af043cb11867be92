"""Evidence that this program shows in words and does not verify as it is.

Owns two layouts: the blob of an Azure paravisor (HCL), which wraps a hardware report and what its
vTPM vouches for, and SGX quotes. Invariant: only offsets are read, within the bytes that are there.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from sds.attestation.snp.report import REPORT_BYTES
from sds.errors import EvidenceMalformedError

HCL_MAGIC: Final = b"HCLA"
_HCL_HEADER: Final = struct.Struct("<4sIII16x")  # magic, version, report size, request type
_REPORT_OFFSET: Final = 0x20
# After the report: size, version, type of report, type of hash, size of the JSON (OpenHCL,
# "IgvmRequestData").
_RUNTIME: Final = struct.Struct("<IIIII")
_RUNTIME_OFFSET: Final = _REPORT_OFFSET + REPORT_BYTES
_REPORT_TYPES: Final = {2: "sev-snp", 4: "tdx"}
_TD_REPORT_BYTES: Final = 1024
_TD_INFO: Final = 512
_SGX_HEADER_BYTES: Final = 48
_SGX_BODY_BYTES: Final = 384
_SGX_VERSIONS: Final = range(2, 5)
_SGX_KEY_TYPES: Final = {0: "EPID", 1: "EPID", 2: "ECDSA P-256", 3: "ECDSA P-384"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HclBlob:
    """An Azure paravisor's blob, laid out.

    Attributes:
        kind: of the hardware report: ``sev-snp`` or ``tdx``.
        report: an SNP report (1184 bytes) or a TDREPORT (1024 bytes).
        runtime: the JSON that the hardware report's report data is the hash of.
        hash_type: 1 is SHA-256, 2 SHA-384, 3 SHA-512.
    """

    kind: str
    report: bytes = field(repr=False)
    runtime: bytes = field(repr=False)
    hash_type: int


def parse_hcl(raw: bytes) -> HclBlob:
    """Lay out an Azure paravisor's blob.

    Raises:
        EvidenceMalformedError: it is cut short, or its report is of a type that is not known.
    """
    if len(raw) < _RUNTIME_OFFSET + _RUNTIME.size or not raw.startswith(HCL_MAGIC):
        raise EvidenceMalformedError(
            f"an Azure paravisor's blob has {_RUNTIME_OFFSET + _RUNTIME.size} bytes at least, "
            f"this one {len(raw)}",
            advice="read all of NV index 0x01400001",
        )
    _, _, kind, hash_type, size = _RUNTIME.unpack_from(raw, _RUNTIME_OFFSET)
    name = _REPORT_TYPES.get(kind)
    start = _RUNTIME_OFFSET + _RUNTIME.size
    if name is None or start + size > len(raw):
        raise EvidenceMalformedError(
            f"an Azure paravisor's blob with a report of type {kind} and {size} bytes of runtime "
            "data cannot be read",
            advice="known are 2 (SEV-SNP) and 4 (TDX)",
        )
    length = REPORT_BYTES if name == "sev-snp" else _TD_REPORT_BYTES
    return HclBlob(
        kind=name,
        report=raw[_REPORT_OFFSET : _REPORT_OFFSET + length],
        runtime=raw[start : start + size],
        hash_type=hash_type,
    )


def describe_td_report(raw: bytes) -> dict[str, str]:
    """A TDREPORT as text (TDX module ABI, TDREPORT_STRUCT): what only its own machine can check."""
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


def is_sgx_quote(raw: bytes) -> bool:
    """Whether these bytes begin as a quote of an SGX enclave."""
    if len(raw) < _SGX_HEADER_BYTES + _SGX_BODY_BYTES or len(raw) == REPORT_BYTES:
        return False
    version, key_type, tee = struct.unpack_from("<HHI", raw)
    return version in _SGX_VERSIONS and key_type in _SGX_KEY_TYPES and tee == 0


def describe_sgx_quote(raw: bytes) -> dict[str, str]:
    """An SGX quote as text (Intel SGX ECDSA Quote Library API, appendix A.4)."""
    version, key_type, _ = struct.unpack_from("<HHI", raw)
    body = raw[_SGX_HEADER_BYTES:]
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
