"""The layout of an SEV-SNP attestation report (AMD 56860, table "ATTESTATION_REPORT Structure").

Owns field offsets and nothing else. Invariant: :func:`parse_report` keeps the raw bytes and
interprets them; it refuses only what cannot be laid out (length, version). What the bytes mean
for trust is decided in ``snp.py`` and ``appraisal.py``.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Final

from sds.errors import ReportLengthError, ReportVersionError

REPORT_BYTES: Final = 0x4A0
SIGNED_BYTES: Final = 0x2A0
"""The signature is over bytes 0 to 0x29F."""
SIGNATURE_NUMBER_BYTES: Final = 72
"""R and S are little-endian, zero-extended to 72 bytes."""
P384_BYTES: Final = 48
VERSIONS: Final = (2, 3, 4, 5)
ECDSA_P384_SHA384: Final = 1


class Product(enum.StrEnum):
    """Families of processors with one root key each; Siena and Bergamo are Genoa's."""

    MILAN = "milan"
    GENOA = "genoa"
    TURIN = "turin"


class SigningKey(enum.IntEnum):
    """KEY_INFO bits 4:2: which key signed the report."""

    VCEK = 0
    VLEK = 1
    NONE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """A TCB_VERSION, component by component; ``fmc`` is None before Turin.

    Components are never compared as one integer: the layout differs between products (AMD 56860,
    "TCB_VERSION Structure").
    """

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None
    reserved: bytes

    def components(self) -> dict[str, int]:
        """Components by name, in the order of the document."""
        named = {
            "fmc": self.fmc,
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }
        return {name: value for name, value in named.items() if value is not None}

    def __str__(self) -> str:
        """``bootloader=3,tee=0,snp=8,microcode=115``."""
        return ",".join(f"{name}={value}" for name, value in self.components().items())


def parse_tcb(raw: bytes, product: Product) -> Tcb:
    """Lay out the eight bytes of a TCB_VERSION as this product has them."""
    if product is Product.TURIN:
        return Tcb(
            fmc=raw[0],
            bootloader=raw[1],
            tee=raw[2],
            snp=raw[3],
            microcode=raw[7],
            reserved=raw[4:7],
        )
    return Tcb(
        fmc=None, bootloader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7], reserved=raw[2:6]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPolicy:
    """POLICY (AMD 56860, table "Guest Policy")."""

    raw: int

    @property
    def smt(self) -> bool:
        """Bit 16: simultaneous multithreading is allowed."""
        return bool(self.raw >> 16 & 1)

    @property
    def reserved_one(self) -> bool:
        """Bit 17: reserved, must be one."""
        return bool(self.raw >> 17 & 1)

    @property
    def migration_agent(self) -> bool:
        """Bit 18: association with a migration agent is allowed."""
        return bool(self.raw >> 18 & 1)

    @property
    def debug(self) -> bool:
        """Bit 19: debugging is allowed."""
        return bool(self.raw >> 19 & 1)

    @property
    def single_socket(self) -> bool:
        """Bit 20: the guest can be activated on one socket only."""
        return bool(self.raw >> 20 & 1)

    @property
    def cxl(self) -> bool:
        """Bit 21: CXL devices and memory may be populated."""
        return bool(self.raw >> 21 & 1)

    @property
    def rapl_disabled(self) -> bool:
        """Bit 23: running average power limit must be disabled."""
        return bool(self.raw >> 23 & 1)

    @property
    def ciphertext_hiding(self) -> bool:
        """Bit 24: ciphertext hiding of DRAM must be enabled."""
        return bool(self.raw >> 24 & 1)

    @property
    def reserved(self) -> int:
        """Bits 63:26, which must be zero."""
        return self.raw >> 26


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformInfo:
    """PLATFORM_INFO (AMD 56860, table "PLATFORM_INFO Field")."""

    raw: int

    @property
    def smt(self) -> bool:
        """Bit 0: SMT is enabled."""
        return bool(self.raw & 1)

    @property
    def rapl_disabled(self) -> bool:
        """Bit 3: RAPL is disabled."""
        return bool(self.raw >> 3 & 1)

    @property
    def ciphertext_hiding(self) -> bool:
        """Bit 4: ciphertext hiding of DRAM is enabled."""
        return bool(self.raw >> 4 & 1)

    @property
    def alias_check(self) -> bool:
        """Bit 5: alias detection has completed since the last reset."""
        return bool(self.raw >> 5 & 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """One report, laid out. Field names are AMD's, in lower case; TCBs are their eight bytes."""

    raw: bytes = field(repr=False)
    version: int
    guest_svn: int
    policy: GuestPolicy
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algo: int
    current_tcb: bytes
    platform_info: PlatformInfo
    key_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: bytes
    cpuid: tuple[int, int, int] | None
    chip_id: bytes
    committed_tcb: bytes
    current_version: tuple[int, int, int]
    committed_version: tuple[int, int, int]
    launch_tcb: bytes

    @property
    def author_key_enabled(self) -> bool:
        """KEY_INFO bit 0."""
        return bool(self.key_info & 1)

    @property
    def mask_chip_key(self) -> bool:
        """KEY_INFO bit 1: the report is not signed by a key of the chip."""
        return bool(self.key_info >> 1 & 1)

    @property
    def signing_key(self) -> int:
        """KEY_INFO bits 4:2, see :class:`SigningKey`."""
        return self.key_info >> 2 & 7

    @property
    def signature_r(self) -> int:
        """R of the signature."""
        start = SIGNED_BYTES
        return int.from_bytes(self.raw[start : start + SIGNATURE_NUMBER_BYTES], "little")

    @property
    def signature_s(self) -> int:
        """S of the signature."""
        start = SIGNED_BYTES + SIGNATURE_NUMBER_BYTES
        return int.from_bytes(self.raw[start : start + SIGNATURE_NUMBER_BYTES], "little")

    @property
    def product_by_cpuid(self) -> Product | None:
        """The product that CPUID names (version 3 and later), None where it is unknown."""
        if self.cpuid is None:
            return None
        family, model, _ = self.cpuid
        for product, (of_family, models) in _CPUID.items():
            if family == of_family and any(model in span for span in models):
                return product
        return None

    def reserved_regions(self) -> dict[str, bytes]:
        """Bytes that must be zero, by their hexadecimal span (those of this version)."""
        spans = [(0x4C, 0x50), (0x1EB, 0x1EC), (0x1EF, 0x1F0)]
        spans.append((0x188, 0x1A0) if self.version == VERSIONS[0] else (0x18B, 0x1A0))
        spans.append((0x208, 0x2A0) if self.version >= VERSIONS[3] else (0x1F8, 0x2A0))
        r_end, s_end = SIGNED_BYTES + P384_BYTES, SIGNED_BYTES + 72 + P384_BYTES
        spans += [(r_end, SIGNED_BYTES + 72), (s_end, SIGNED_BYTES + 144)]
        spans.append((SIGNED_BYTES + 144, REPORT_BYTES))
        return {f"0x{start:x}..0x{end - 1:x}": self.raw[start:end] for start, end in sorted(spans)}


# AMD 57230 ("VCEK and KDS interface"), family and model ranges of each product.
_CPUID: Final = {
    Product.MILAN: (0x19, (range(0x10),)),
    Product.GENOA: (0x19, (range(0x10, 0x20), range(0xA0, 0xB0))),
    Product.TURIN: (0x1A, (range(0x12),)),
}

_HEAD = struct.Struct("<IIQ16s16sII8sQII64s48s32s48s48s32s32s8s")
_TAIL = struct.Struct("<64s8s4B4B8s")
_TAIL_OFFSET = 0x1A0


def parse_report(raw: bytes) -> SnpReport:
    """Lay out the 1184 bytes of a report.

    Raises:
        ReportLengthError: it has another length.
        ReportVersionError: its version is none of 2, 3, 4 and 5.
    """
    if len(raw) != REPORT_BYTES:
        raise ReportLengthError(
            f"an SEV-SNP report has {REPORT_BYTES} bytes, and this has {len(raw)}",
            advice="give the raw report, without any header and not as text",
        )
    version = int.from_bytes(raw[:4], "little")
    if version not in VERSIONS:
        raise ReportVersionError(f"the report has version {version}; known are 2, 3, 4 and 5")
    head = _HEAD.unpack_from(raw)
    tail = _TAIL.unpack_from(raw, _TAIL_OFFSET)
    cpuid = (raw[0x188], raw[0x189], raw[0x18A]) if version > VERSIONS[0] else None
    return SnpReport(
        raw=bytes(raw),
        version=version,
        guest_svn=head[1],
        policy=GuestPolicy(raw=head[2]),
        family_id=head[3],
        image_id=head[4],
        vmpl=head[5],
        signature_algo=head[6],
        current_tcb=head[7],
        platform_info=PlatformInfo(raw=head[8]),
        key_info=head[9],
        report_data=head[11],
        measurement=head[12],
        host_data=head[13],
        id_key_digest=head[14],
        author_key_digest=head[15],
        report_id=head[16],
        report_id_ma=head[17],
        reported_tcb=head[18],
        cpuid=cpuid,
        chip_id=tail[0],
        committed_tcb=tail[1],
        current_version=(tail[4], tail[3], tail[2]),
        committed_version=(tail[8], tail[7], tail[6]),
        launch_tcb=tail[10],
    )
