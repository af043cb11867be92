"""Reference values: what the evidence of an acceptable machine shows (RATS, RFC 9334).

Owns the model that configuration files and the signed policy share; its JSON Schema is published
in ``docs/``. Invariants: the defaults refuse what weakens a guest (debugging, migration, firmware
that is not committed); an empty list requires nothing of its field.
"""

# ruff: noqa: RUF012  pydantic copies the defaults of fields

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, StrictBool, StrictInt, model_validator

from sds.attestation.registry import KINDS
from sds.attestation.snp.report import Product
from sds.settings.field_types import Written

Hex48 = Annotated[str, Field(pattern=r"^[0-9a-f]{96}$")]
Hex64 = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Hex6 = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Hex16 = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Component = Annotated[StrictInt, Field(ge=0, le=255)]
_Version = Annotated[list[Component], Field(min_length=3, max_length=3)]
_Abi = Annotated[list[Component], Field(min_length=2, max_length=2)]
_SECTIONS: Final = {"sev-snp": "snp", "tdx": "tdx"}
"""The kinds that have a section of their own: under ``others``, nothing would read their values."""


class _Model(Written):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MinimumTcb(_Model):
    """The lowest accepted security version of each component, each compared on its own.

    Attributes:
        fmc: the FMC (Turin and later only).
        bootloader: the secure processor's boot loader.
        tee: the secure processor's operating system.
        snp: the SNP firmware.
        microcode: the lowest patch level of all cores.
    """

    fmc: Component = 0
    bootloader: Component = 0
    tee: Component = 0
    snp: Component = 0
    microcode: Component = 0


class SnpReferenceValues(_Model):
    """What an SEV-SNP report must show.

    Attributes:
        products: accepted products; if empty, all.
        minimum_tcb: per product; reported, committed, current and launch TCB must reach it. A
            product without an entry may have any.
        minimum_firmware: ``[major, minor, build]`` that current and committed must reach.
        permit_debug: accept guests that may be debugged.
        permit_migration_agent: accept guests that may have a migration agent.
        permit_provisional_firmware: accept firmware that is not committed.
        maximum_vmpl: highest privilege level number that is accepted.
        minimum_guest_svn: lowest security version of the guest.
        host_data: accepted HOST_DATA, hex.
        id_key_digests: accepted ID_KEY_DIGEST, hex.
        author_key_digests: accepted AUTHOR_KEY_DIGEST, hex; AUTHOR_KEY_EN must be set.
        family_ids: accepted FAMILY_ID, hex.
        image_ids: accepted IMAGE_ID, hex.
        chip_ids: accepted CHIP_ID, hex.
        denied_chip_ids: refused CHIP_ID, hex; if there are any, reports without one are refused.
        csp_ids: accepted CSP_ID of a VLEK; if there are any, VCEKs are refused.
        permit_unchecked_revocation: accept reports if no revocation list is configured at all.
        permit_vlek: accept reports signed by a VLEK.
        permit_vcek: accept reports signed by a VCEK; if unset, only without ``csp_ids``.
        minimum_policy_abi: ``[major, minor]`` that the guest's policy demands of the firmware.
        mitigations: bits of LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR that must be set.
        forbid_smt: SMT must be off, and the policy must forbid it.
        forbid_cxl: the policy must forbid CXL.
        require_single_socket: the policy must bind the guest to one socket.
        require_rapl_disabled: RAPL must be off.
        require_ciphertext_hiding: ciphertext hiding of DRAM must be on.
        require_alias_check: alias detection must have completed (BadRAM, AMD-SB-3015).
        require_aes_256_xts: the policy must demand AES-256-XTS.
        require_page_swap_disabled: the policy must forbid moving and swapping the guest's pages.
        require_tsme: all of the platform's memory must be encrypted.
        require_ecc: the platform's memory must have error correction.
        require_iommu_write_safe: IOMMU writes must be confined.
    """

    products: list[Product] = []
    minimum_tcb: dict[Product, MinimumTcb] = {}
    minimum_firmware: _Version | None = None
    permit_debug: StrictBool = False
    permit_migration_agent: StrictBool = False
    permit_provisional_firmware: StrictBool = False
    maximum_vmpl: Annotated[StrictInt, Field(ge=0, le=3)] = 0
    minimum_guest_svn: Annotated[StrictInt, Field(ge=0, le=2**32 - 1)] = 0
    host_data: list[Hex32] = []
    id_key_digests: list[Hex48] = []
    author_key_digests: list[Hex48] = []
    family_ids: list[Hex16] = []
    image_ids: list[Hex16] = []
    chip_ids: list[Hex64] = []
    denied_chip_ids: list[Hex64] = []
    csp_ids: list[str] = []
    permit_unchecked_revocation: StrictBool = True
    permit_vlek: StrictBool = True
    permit_vcek: StrictBool | None = None
    minimum_policy_abi: _Abi | None = None
    mitigations: Annotated[StrictInt, Field(ge=0, le=2**64 - 1)] = 0
    forbid_smt: StrictBool = False
    forbid_cxl: StrictBool = False
    require_single_socket: StrictBool = False
    require_rapl_disabled: StrictBool = False
    require_ciphertext_hiding: StrictBool = False
    require_alias_check: StrictBool = False
    require_aes_256_xts: StrictBool = False
    require_page_swap_disabled: StrictBool = False
    require_tsme: StrictBool = False
    require_ecc: StrictBool = False
    require_iommu_write_safe: StrictBool = False

    @property
    def without_minimum(self) -> str:
        """Say which products any firmware may have, although ``minimum_tcb`` names others."""
        accepted = self.products or list(Product)
        lacking = [product for product in accepted if product not in self.minimum_tcb]
        if not lacking or not self.minimum_tcb:
            return ""
        return (
            f"snp names no minimum_tcb of {', '.join(lacking)}: their firmware is accepted "
            "whatever its holes; leave them out of products, or name their minimum"
        )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        # The firmware writes zeros if there is nothing, so zeros identify nobody.
        for name in ("id_key_digests", "author_key_digests", "chip_ids"):
            if any(not value.strip("0") for value in getattr(self, name)):
                raise ValueError(f"{name}: all zero means that there is none; leave it out")
        for product, minimum in self.minimum_tcb.items():
            if minimum.fmc and product is not Product.TURIN:
                raise ValueError(f"minimum_tcb: {product} has no component fmc")
        vcek = not self.csp_ids if self.permit_vcek is None else self.permit_vcek
        if not (self.permit_vlek or vcek):
            raise ValueError(
                "no report can be accepted: permit_vlek refuses those by a VLEK, and permit_vcek "
                "or csp_ids those by a VCEK; permit the keys that sign your machines' reports"
            )
        if self.chip_ids and {*self.chip_ids} <= {*self.denied_chip_ids}:
            raise ValueError("no report can be accepted: denied_chip_ids has all of chip_ids")
        return self


TcbStatus = Literal[
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "TDRelaunchAdvised",
    "TDRelaunchAdvisedConfigurationNeeded",
]


class TdxReferenceValues(_Model):
    """What a TDX quote must show.

    Attributes:
        permit_debug: accept TDs that may be debugged.
        permit_migratable: accept TDs that may be migrated to another machine.
        permit_service_td: accept TDs with a bound service TD, which may read and move them; not
            needed for those that ``mr_service_td`` names.
        permit_unchecked_revocation: accept quotes if no revocation list is configured at all.
        require_sept_ve_disable: the host must not be able to inject #VE by unmapping pages.
        rtmr0: accepted RTMR0, hex: the configuration of the firmware.
        rtmr1: accepted RTMR1, hex: boot loader and kernel.
        rtmr2: accepted RTMR2, hex: command line and initrd.
        rtmr3: accepted RTMR3, hex: what the guest itself extends.
        mr_config_id: accepted MRCONFIGID, hex.
        mr_owner: accepted MROWNER, hex.
        mr_owner_config: accepted MROWNERCONFIG, hex.
        mr_seam: accepted MRSEAM, hex.
        mr_service_td: accepted MRSERVICETD, hex (TDX 1.5).
        fmspcs: accepted kinds of platform, FMSPC in hex.
        platform_instance_ids: accepted platforms, hex (PCKs of the Platform CA only).
        ppids: accepted processor packages, hex.
        tcb_statuses: accepted statuses of the platform's TCB, of the TDX module and of the quoting
            enclave. TDRelaunchAdvised means that an older module launched the TD, and the platform
            is up to date now; OutOfDate accepts it too.
        permitted_advisories: INTEL-SA numbers that are accepted together with an accepted status
            other than UpToDate; if empty, any.
        minimum_tcb_evaluation_number: lowest tcbEvaluationDataNumber of TCB info and QE identity.
        require_exchange_key: evidence must be signed by the key that early boot measured into
            RTMR3, so that no other process of the guest can give evidence for an exchange.
    """

    permit_debug: StrictBool = False
    permit_migratable: StrictBool = False
    permit_service_td: StrictBool = False
    permit_unchecked_revocation: StrictBool = False
    require_sept_ve_disable: StrictBool = False
    rtmr0: list[Hex48] = []
    rtmr1: list[Hex48] = []
    rtmr2: list[Hex48] = []
    rtmr3: list[Hex48] = []
    mr_config_id: list[Hex48] = []
    mr_owner: list[Hex48] = []
    mr_owner_config: list[Hex48] = []
    mr_seam: list[Hex48] = []
    mr_service_td: list[Hex48] = []
    fmspcs: list[Hex6] = []
    platform_instance_ids: list[Hex16] = []
    ppids: list[Hex16] = []
    tcb_statuses: Annotated[list[TcbStatus], Field(min_length=1)] = ["UpToDate"]
    permitted_advisories: list[Annotated[str, Field(pattern=r"^INTEL-SA-[0-9]{5}$")]] = []
    minimum_tcb_evaluation_number: Annotated[StrictInt, Field(ge=0)] = 0
    require_exchange_key: StrictBool = False

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.require_exchange_key and self.rtmr3:
            raise ValueError(
                "rtmr3 and require_exchange_key exclude each other: the exchange key is in RTMR3, "
                "and every boot makes another one"
            )
        return self


PLACEHOLDERS: Final = (
    "reference_values.measurements has the zeros of an example, which no machine shows: write the "
    "launch measurement of your guest"
)
_WHICH_SNP: Final = ("host_data", "id_key_digests", "author_key_digests", "image_ids", "chip_ids")
_WHICH_TD: Final = (
    *("rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id", "mr_owner", "mr_owner_config"),
    *("mr_service_td", "platform_instance_ids", "ppids"),
)
"""The fields that only some machines have, beside the launch measurement."""


class ReferenceValues(_Model):
    """What evidence must show.

    Attributes:
        measurements: accepted launch measurements (SNP MEASUREMENT, TDX MRTD), lower-case hex;
            if empty, any.
        snp: what SEV-SNP reports must show.
        tdx: what TDX quotes must show.
        others: what evidence of further kinds must show, by the kind's name; the kind's own module
            defines the fields.
    """

    measurements: list[Hex48] = []
    snp: SnpReferenceValues = SnpReferenceValues()
    tdx: TdxReferenceValues = TdxReferenceValues()
    others: dict[str, dict[str, JsonValue]] = {}

    @property
    def has_placeholders(self) -> bool:
        """Say whether a measurement is the zeros of an example, which no machine has."""
        return any(not value.strip("0") for value in self.measurements)

    @property
    def any_machine(self) -> bool:
        """Say whether every machine with genuine evidence is accepted, whoever runs it."""
        return not (
            self.measurements
            or self.others
            or any(getattr(self.snp, name) for name in _WHICH_SNP)
            or any(getattr(self.tdx, name) for name in _WHICH_TD)
        )

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.others:
            if name in _SECTIONS:
                raise ValueError(
                    f"others: the values of {name} are in the section {_SECTIONS[name]}"
                )
            if name not in KINDS or not KINDS[name].verified:
                known = (each for each, kind in KINDS.items() if kind.verified)
                raise ValueError(
                    f"others: {name!r} is not a further kind of evidence; known are "
                    + ", ".join(sorted(set(known) - set(_SECTIONS)))
                )
        return self
