"""Reads the fields of an SEV-SNP attestation report (AMD 56860, table 23).

Owns the layout of versions 2 to 5 and of TCB_VERSION (table 3, and the Turin layout of 57230).
Invariants: a :class:`Report` is a view of exactly 1184 bytes; nothing in it was verified, and later
verification uses the bytes themselves, never a rebuilt structure.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field
from typing import Final, Self

from sds.errors import EvidenceError, EvidenceMalformedError

REPORT_BYTES: Final = 0x4A0
SIGNED_BYTES: Final = 0x2A0
KNOWN_VERSIONS: Final = range(2, 6)
CPUID_VERSION: Final = 3
"""The first version that names the processor (family, model, stepping)."""
MITIGATION_VERSION: Final = 5
"""The first version that may have the mitigation vectors (56860, table 23)."""
ALGORITHM_ECDSA_P384_SHA384: Final = 1
NO_MIGRATION_AGENT: Final = (b"\xff" * 32, bytes(32))
"""The values of REPORT_ID_MA if no migration agent is associated."""
TURIN_CHIP_ID_BYTES: Final = 8
_FAMILY_ZEN3_4: Final = 0x19
_FAMILY_ZEN5: Final = 0x1A

_FIXED = struct.Struct("<IIQ16s16sIIQQII64s48s32s48s48s32s32sQBBB21s64sQBBBBBBBBQQQ152s")


class Product(enum.StrEnum):
    """The products, by their names in AMD's certificates (lower case) and in reference values."""

    MILAN = "milan"
    GENOA = "genoa"
    TURIN = "turin"

    @property
    def certificate_name(self) -> str:
        """Return the name as AMD's certificates and the KDS write it."""
        return self.value.capitalize()


class SigningKey(enum.IntEnum):
    """The values of KEY_INFO.SIGNING_KEY (56860, table 23, offset 0x48, bits 4:2)."""

    VCEK = 0
    VLEK = 1
    NONE = 7


class GuestPolicy(enum.IntFlag):
    """The bits of the guest's policy above the ABI version (56860, table 9)."""

    SMT = 1 << 16
    RESERVED_ONE = 1 << 17
    MIGRATE_MA = 1 << 18
    DEBUG = 1 << 19
    SINGLE_SOCKET = 1 << 20
    CXL_ALLOW = 1 << 21
    MEM_AES_256_XTS = 1 << 22
    RAPL_DIS = 1 << 23
    CIPHERTEXT_HIDING_DRAM = 1 << 24
    PAGE_SWAP_DISABLE = 1 << 25


class PlatformInfo(enum.IntFlag):
    """The bits of PLATFORM_INFO (56860, table 24)."""

    SMT_EN = 1 << 0
    TSME_EN = 1 << 1
    ECC_EN = 1 << 2
    RAPL_DIS = 1 << 3
    CIPHERTEXT_HIDING_DRAM_EN = 1 << 4
    ALIAS_CHECK_COMPLETE = 1 << 5
    IOMMU_WR_SAFE = 1 << 6
    TIO_EN = 1 << 7


POLICY_KNOWN: Final = (1 << 26) - 1
PLATFORM_KNOWN: Final = (1 << 8) - 1
KEY_INFO_KNOWN: Final = (1 << 5) - 1
_AUTHOR_KEY_EN: Final = 1 << 0
_MASK_CHIP_KEY: Final = 1 << 1

TCB_COMPONENTS: Final[dict[Product, dict[str, int]]] = {
    Product.MILAN: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Product.GENOA: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Product.TURIN: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}
"""For each product and component: its byte in TCB_VERSION (in file order)."""
_TCB_RESERVED: Final = {
    product: tuple(sorted(set(range(8)) - set(components.values())))
    for product, components in TCB_COMPONENTS.items()
}
"""For each product: the bytes of TCB_VERSION that no component owns."""


@dataclass(frozen=True, slots=True)
class Tcb:
    """A TCB_VERSION: eight bytes in file order. Never compared as one integer."""

    raw: bytes

    def components(self, product: Product) -> dict[str, int]:
        """Return the security version of each component, in this product's layout."""
        return {name: self.raw[index] for name, index in TCB_COMPONENTS[product].items()}

    def reserved(self, product: Product) -> bytes:
        """Return the bytes that no component of this product owns."""
        return bytes(self.raw[index] for index in _TCB_RESERVED[product])

    def describe(self, product: Product | None) -> str:
        """Return text for people: by component, or raw if the product is unknown."""
        if product is None:
            return self.raw.hex()
        return " ".join(f"{name}={value}" for name, value in self.components(product).items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An attestation report, unverified. Names and meanings are those of 56860, table 23.

    Attributes:
        raw: the 1184 bytes. Digests and identifiers are bytes in file order; integers were
            little-endian.
    """

    raw: bytes = field(repr=False)
    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: Tcb
    platform_info: int
    key_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: Tcb
    cpuid_family: int
    cpuid_model: int
    cpuid_stepping: int
    chip_id: bytes
    committed_tcb: Tcb
    current_firmware: tuple[int, int, int]
    committed_firmware: tuple[int, int, int]
    launch_tcb: Tcb
    launch_mitigation: int
    current_mitigation: int

    @classmethod
    def parse(cls, raw: bytes) -> Self:
        """Read the fields.

        Raises:
            EvidenceMalformedError: ``report_length``: it is not 1184 bytes long. Nothing else is
                checked here.
        """
        if len(raw) != REPORT_BYTES:
            raise EvidenceMalformedError(
                f"an SEV-SNP report is {REPORT_BYTES} bytes long, this is {len(raw)}",
                advice="give the raw report, which is configfs-tsm's outblob",
                reason="report_length",
            )
        fields = _FIXED.unpack_from(raw)
        tcb = raw[0x38:0x40], raw[0x180:0x188], raw[0x1E0:0x1E8], raw[0x1F0:0x1F8]
        return cls(
            raw=raw,
            version=fields[0],
            guest_svn=fields[1],
            policy=fields[2],
            family_id=fields[3],
            image_id=fields[4],
            vmpl=fields[5],
            signature_algorithm=fields[6],
            current_tcb=Tcb(tcb[0]),
            platform_info=fields[8],
            key_info=fields[9],
            report_data=fields[11],
            measurement=fields[12],
            host_data=fields[13],
            id_key_digest=fields[14],
            author_key_digest=fields[15],
            report_id=fields[16],
            report_id_ma=fields[17],
            reported_tcb=Tcb(tcb[1]),
            cpuid_family=raw[0x188],
            cpuid_model=raw[0x189],
            cpuid_stepping=raw[0x18A],
            chip_id=raw[0x1A0:0x1E0],
            committed_tcb=Tcb(tcb[2]),
            current_firmware=(raw[0x1EA], raw[0x1E9], raw[0x1E8]),
            committed_firmware=(raw[0x1EE], raw[0x1ED], raw[0x1EC]),
            launch_tcb=Tcb(tcb[3]),
            launch_mitigation=int.from_bytes(raw[0x1F8:0x200], "little"),
            current_mitigation=int.from_bytes(raw[0x200:0x208], "little"),
        )

    @property
    def product(self) -> Product | None:
        """Return the product that the report names: none before version 3, or an unknown one."""
        if self.version < CPUID_VERSION:
            return None
        try:
            return product_of_cpuid(self.cpuid_family, self.cpuid_model)
        except EvidenceError:
            return None

    @property
    def signed(self) -> bytes:
        """Return the bytes that the signature covers."""
        return self.raw[:SIGNED_BYTES]

    @property
    def signature(self) -> tuple[int, int]:
        """Return R and S, each little-endian in 72 bytes (56860, table 141)."""
        return (
            int.from_bytes(self.raw[0x2A0:0x2E8], "little"),
            int.from_bytes(self.raw[0x2E8:0x330], "little"),
        )

    @property
    def author_key_enabled(self) -> bool:
        """Return AUTHOR_KEY_EN: whether AUTHOR_KEY_DIGEST is a digest."""
        return bool(self.key_info & _AUTHOR_KEY_EN)

    @property
    def chip_key_masked(self) -> bool:
        """Return MASK_CHIP_KEY: whether the firmware signs nothing and writes zeros."""
        return bool(self.key_info & _MASK_CHIP_KEY)

    @property
    def signing_key(self) -> int:
        """Return SIGNING_KEY, a :class:`SigningKey` if it is known."""
        return (self.key_info >> 2) & 7

    def reserved_spans(self) -> dict[str, bytes]:
        """Return every reserved span of this version, by its offsets; all must be zero."""
        raw = self.raw
        spans = {
            "0x04C-0x04F": raw[0x4C:0x50],
            "0x1EB": raw[0x1EB:0x1EC],
            "0x1EF": raw[0x1EF:0x1F0],
            "0x208-0x29F": raw[0x208:0x2A0],
            "0x2D0-0x2E7 (above R)": raw[0x2D0:0x2E8],
            "0x318-0x32F (above S)": raw[0x318:0x330],
            "0x330-0x49F (after S)": raw[0x330:0x4A0],
        }
        start = 0x188 if self.version < CPUID_VERSION else 0x18B
        spans[f"{start:#05x}-0x19F"] = raw[start:0x1A0]
        if self.version < MITIGATION_VERSION:
            spans["0x1F8-0x207"] = raw[0x1F8:0x208]
        return spans


def product_of_cpuid(family: int, model: int) -> Product:
    """Return the product that a report of version 3 or later names.

    Milan is family 19h, models 00h-0Fh; Genoa 10h-1Fh, with Siena and Bergamo (A0h-AFh); Turin is
    family 1Ah, models 00h-1Fh (AMD's processor programming references; 57230, section 4).

    Raises:
        EvidenceError: ``product_mismatch``: it is another processor.
    """
    upper = model >> 4
    if family == _FAMILY_ZEN3_4:
        if upper == 0x0:
            return Product.MILAN
        if upper in {0x1, 0xA}:
            return Product.GENOA
    if family == _FAMILY_ZEN5 and upper in {0x0, 0x1}:
        return Product.TURIN
    raise EvidenceError(
        f"CPUID family {family:#04x}, model {model:#04x} is not a known processor",
        advice="known are Milan, Genoa (with Siena and Bergamo) and Turin",
        reason="product_mismatch",
    )
