"""Reference values: what the evidence of an acceptable machine shows (RATS, RFC 9334).

Owns the model that configuration files and the signed policy share; its JSON Schema is published
in ``docs/``. Invariant: the defaults are the strict ones, and a list that is empty demands
nothing of its field.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sds.attestation.snp_report import Product  # noqa: TC001  pydantic reads annotations

Hex48 = Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Component = Annotated[int, Field(ge=0, le=255)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MinimumTcb(_Model):
    """Minimum security version of each component; each is compared by itself.

    Attributes:
        fmc: Turin and later only.
        bootloader: of the secure processor.
        tee: secure processor's operating system.
        snp: SNP firmware.
        microcode: lowest patch level of all cores.
    """

    fmc: Component = 0
    bootloader: Component = 0
    tee: Component = 0
    snp: Component = 0
    microcode: Component = 0


class SnpReferenceValues(_Model):
    """What is demanded of an SEV-SNP report.

    Attributes:
        products: accepted products; all where empty.
        minimum_tcb: per product; reported, committed and current must reach it.
        minimum_firmware: ``[major, minor, build]`` that current and committed must reach.
        permit_debug: accept guests that may be debugged.
        permit_migration_agent: accept guests that may have a migration agent.
        permit_provisional_firmware: accept firmware that is not committed.
        permit_masked_chip_key: accept reports made with the chip's key masked.
        maximum_vmpl: highest privilege level number that is accepted.
        minimum_guest_svn: lowest security version of the guest.
        host_data: accepted HOST_DATA, hex.
        id_key_digests: accepted ID_KEY_DIGEST, hex.
        author_key_digests: accepted AUTHOR_KEY_DIGEST, hex; AUTHOR_KEY_EN must be set.
        family_ids: accepted FAMILY_ID, hex.
        image_ids: accepted IMAGE_ID, hex.
        chip_ids: accepted CHIP_ID, hex.
        denied_chip_ids: refused CHIP_ID, hex.
        csp_ids: accepted CSP_ID of a VLEK.
        permit_vlek: accept reports signed by a VLEK.
        forbid_smt: SMT must be off, and the policy must forbid it.
        forbid_cxl: the policy must forbid CXL.
        require_single_socket: the policy must bind the guest to one socket.
        require_rapl_disabled: RAPL must be off.
        require_ciphertext_hiding: ciphertext hiding of DRAM must be on.
        require_alias_check: alias detection must have completed.
    """

    products: list[Product] = []
    minimum_tcb: dict[Product, MinimumTcb] = {}
    minimum_firmware: Annotated[list[Component], Field(min_length=3, max_length=3)] | None = None
    permit_debug: bool = False
    permit_migration_agent: bool = False
    permit_provisional_firmware: bool = False
    permit_masked_chip_key: bool = False
    maximum_vmpl: Annotated[int, Field(ge=0, le=3)] = 0
    minimum_guest_svn: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    host_data: list[Hex32] = []
    id_key_digests: list[Hex48] = []
    author_key_digests: list[Hex48] = []
    family_ids: list[Hex16] = []
    image_ids: list[Hex16] = []
    chip_ids: list[Hex64] = []
    denied_chip_ids: list[Hex64] = []
    csp_ids: list[str] = []
    permit_vlek: bool = True
    forbid_smt: bool = False
    forbid_cxl: bool = False
    require_single_socket: bool = False
    require_rapl_disabled: bool = False
    require_ciphertext_hiding: bool = False
    require_alias_check: bool = False


class TdxReferenceValues(_Model):
    """What is demanded of a TDX quote.

    Attributes:
        permit_debug: accept TDs that may be debugged.
        rtmr0: accepted RTMR0, hex; the others alike.
        rtmr1: see rtmr0.
        rtmr2: see rtmr0.
        rtmr3: see rtmr0.
        mr_config_id: accepted MRCONFIGID, hex.
        mr_owner: accepted MROWNER, hex.
        mr_seam: accepted MRSEAM, hex.
        tcb_statuses: accepted statuses of the platform's TCB.
    """

    permit_debug: bool = False
    rtmr0: list[Hex48] = []
    rtmr1: list[Hex48] = []
    rtmr2: list[Hex48] = []
    rtmr3: list[Hex48] = []
    mr_config_id: list[Hex48] = []
    mr_owner: list[Hex48] = []
    mr_seam: list[Hex48] = []
    tcb_statuses: list[str] = ["UpToDate"]


class ReferenceValues(_Model):
    """What is demanded of evidence.

    Attributes:
        measurements: accepted launch measurements (SNP MEASUREMENT, TDX MRTD), lower-case hex;
            any where empty.
        snp: of SEV-SNP reports.
        tdx: of TDX quotes.
    """

    measurements: list[Hex48] = []
    snp: SnpReferenceValues = SnpReferenceValues()
    tdx: TdxReferenceValues = TdxReferenceValues()
