"""The sections ``attestation:`` (our own evidence) and ``verification:`` (what others' must show).

Owns what the configurations of agent and authority share. It is data only; ``attestation.build``
makes attesters and verifiers from it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from sds.attestation.exchange_key.register import RTMR3
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.registry import KINDS
from sds.attestation.snp.report import Product  # noqa: TC001  pydantic reads annotations
from sds.settings.field_types import MOST, Count, PathField, Settings
from sds.settings.https_url import check_http_url
from sds.workload.kubernetes.settings import ServerSettings

if TYPE_CHECKING:
    from pathlib import Path


def _known_kind(name: str) -> str:
    known = ("auto", "simulated", *KINDS)
    if name not in known:
        raise ValueError(f"expected one of {', '.join(known)}")
    return name


_SNP: Final = frozenset({"auto", "sev-snp"})
_SNP_REPORT: Final = _SNP | {"azure-snp-vtpm"}
_VTPM: Final = frozenset({"auto", "azure-snp-vtpm", "azure-tdx-vtpm"})
_TOKEN: Final = frozenset({"kubernetes-token"})
_OF_KINDS: Final = {
    "descriptor": frozenset({"simulated"}),
    "privilege_level": _SNP,
    "certificates": _SNP_REPORT | {"tpm"},
    "certificate_server": _SNP_REPORT,
    "certificate_cache": _SNP_REPORT,
    "product": _SNP_REPORT,
    "tpm_device": _VTPM | {"tpm"},
    "metadata_server": _VTPM,
    "exchange_key": _VTPM | {"tdx", "tpm"},
    "projected_token": _TOKEN,
    "api": _TOKEN,
}
"""Field -> the kinds that it is for; a kind from elsewhere may use any."""
_BESIDE: Final = {"certificate_cache": "certificate_server", "product": "certificate_server"}
"""Field -> the field without which nothing reads it."""
_OWN_KINDS: Final = frozenset[str]().union(*_OF_KINDS.values())


Url = Annotated[str, AfterValidator(check_http_url)]


class ExchangeKeySection(Settings):
    """A key that only this process has, measured before any container runs."""

    runtime_register: PathField = Field(
        default=RTMR3,
        description="TDX: the runtime register, as the kernel's file. Its name ends with the "
        "algorithm.",
    )
    pcr: Annotated[int, Field(ge=0, le=15)] | None = Field(
        default=None,
        description="vTPM kinds: the PCR instead, of `attestation.tpm_device`. Choose one that "
        "the boot chain leaves at zero.",
    )

    @model_validator(mode="after")
    def _one_register(self) -> Self:
        if self.pcr is not None and self.runtime_register != RTMR3:
            raise ValueError("give pcr or runtime_register, not both: one register has the key")
        return self


class AttestationSection(Settings):
    """The evidence that this process gives."""

    kind: Annotated[str, AfterValidator(_known_kind)] | None = Field(
        default=None,
        description="`auto`: what this confidential guest offers, by configfs-tsm, "
        "`/dev/sev-guest` or an Azure paravisor's vTPM. `sev-snp` or `tdx`: by the first two, and "
        "it must be this kind. "
        "`azure-snp-vtpm` or `azure-tdx-vtpm`: an Azure confidential VM, through its vTPM. "
        "`tpm`: the boot of a machine with a TPM 2.0. "
        "`simulated`: a machine that exists only in software, for trials. "
        "`kubernetes-token`: for nodes without confidential hardware; the token "
        "says which pod asks, not what code runs. If unset, this process gives no "
        "evidence.",
    )
    descriptor: Annotated[int, Field(ge=3, le=MOST)] | None = Field(
        default=None,
        description="`simulated` only: the inherited descriptor from which to read the machine.",
    )
    privilege_level: Annotated[int, Field(ge=0, le=3)] | None = Field(
        default=None,
        description="SEV-SNP only: the VMPL to ask for. If unset: the kernel's own.",
    )
    certificates: PathField | None = Field(
        default=None,
        description="SEV-SNP, also on Azure: directory of VCEKs, ASKs and ARKs (PEM or DER, any "
        "file names), for hosts that give none with the report. `tpm`: directory of its "
        "manufacturer's certificates.",
    )
    certificate_server: Url | None = Field(
        default=None,
        description="SEV-SNP, also on Azure: URL of a server in the layout of AMD's KDS, usually a "
        "cache of your own. Its answers add no trust.",
    )
    certificate_cache: PathField | None = Field(
        default=None,
        description="SEV-SNP, also on Azure: folder in which that server's certificates are kept, "
        "so that a restart asks for nothing again.",
    )
    tpm_device: PathField | None = Field(
        default=None,
        description="`azure-snp-vtpm`, `azure-tdx-vtpm`, `tpm` and `auto`: the TPM's device, or "
        "the socket of a TPM in software. If unset: `/dev/tpmrm0`.",
    )
    metadata_server: Url = Field(
        default="http://169.254.169.254",
        description="`azure-snp-vtpm` and `azure-tdx-vtpm` only: URL of the instance metadata "
        "service.",
    )
    product: Product | None = Field(
        default=None,
        description="SEV-SNP, also on Azure: which product's certificate to ask that server for, "
        "if the report (version 2) does not say.",
    )
    exchange_key: ExchangeKeySection | None = Field(
        default=None,
        description="TDX and vTPM kinds: make a key at the first start after boot, measure it and "
        "then a cap into a runtime register, and sign all evidence with it. systemd must keep the "
        "key (`FileDescriptorStoreMax=1`, `FileDescriptorStorePreserve=yes`), and must start this "
        "service before containers. If unset, evidence does not say which process made it.",
    )
    projected_token: PathField | None = Field(
        default=None,
        description="`kubernetes-token` only: a projected token, sent as it is. It binds "
        "nothing. If unset, the process asks for a token bound to each request "
        "(RBAC `create` on `serviceaccounts/token`).",
    )
    api: ServerSettings = Field(
        default=ServerSettings(),
        description="`kubernetes-token` only: the API server to ask for bound tokens.",
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        """Refuse what was written and would change nothing."""
        for name, kinds in _OF_KINDS.items():
            unchanged = getattr(self, name) == type(self).model_fields[name].default
            if unchanged or self.kind in kinds or self.kind not in {None, *_OWN_KINDS}:
                continue
            its = "kind is missing" if self.kind is None else f"kind is {self.kind}"
            raise ValueError(f"{name}: it is for the kinds {', '.join(sorted(kinds))}, and {its}")
        if self.kind in {None, *_OWN_KINDS}:
            for name, needed in _BESIDE.items():
                if getattr(self, name) is not None and getattr(self, needed) is None:
                    raise ValueError(f"{name}: it is for {needed}, which is missing")
        if self.projected_token is not None and self.api != ServerSettings():
            raise ValueError("api: projected_token is sent as it is, so nobody is asked for one")
        key = self.exchange_key
        # "auto" may become either; a verifier looks at no other register than its kind's.
        if key is not None and self.kind in _OF_KINDS["exchange_key"] - {"auto"}:
            if self.kind == "tdx" and key.pcr is not None:
                raise ValueError("exchange_key.pcr: a TDX quote shows the runtime register, no PCR")
            if self.kind != "tdx" and key.pcr is None:
                raise ValueError(f"exchange_key.pcr: missing, and {self.kind} shows PCRs only")
        return self

    @property
    def is_guest(self) -> bool:
        """Say whether the evidence is of a confidential guest, so the API server is untrusted."""
        return self.kind is not None and self.kind != "kubernetes-token"


_OF_INTEL: Final = ("authorities", "update", "tcb_evaluation_data_number", "pcs", "root_list")
_OF_AMD: Final = ("kds",)


class FetchSection(Settings):
    """From where the process fills the collateral folder."""

    fmspcs: list[Annotated[str, Field(pattern=r"^[0-9a-fA-F]{12}$")]] = Field(
        default=[], description="Kinds of TDX platform, FMSPC in hexadecimal."
    )
    authorities: Annotated[list[Literal["platform", "processor"]], Field(min_length=1)] = Field(
        default=["platform", "processor"],
        description="PCK authorities whose revocation lists are needed.",
    )
    update: Literal["standard", "early"] = Field(
        default="standard", description="Which of Intel's TCB recoveries."
    )
    tcb_evaluation_data_number: Count | None = Field(
        default=None,
        description="Exactly this TCB recovery instead of `update`, for as long as Intel has it. "
        "`sds collateral recoveries` lists the numbers.",
    )
    products: list[Product] = Field(
        default=[], description="AMD's products whose revocation lists are needed."
    )
    pcs: Url = Field(
        default="https://api.trustedservices.intel.com", description="Intel's PCS, or a PCCS."
    )
    root_list: Url | None = Field(
        default=None,
        description="The list of Intel's root. Without it: Intel's own with Intel's PCS, else the "
        "PCCS's.",
    )
    kds: Url = Field(
        default="https://kdsintf.amd.com", description="AMD's KDS, or a cache in its layout."
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.fmspcs and not self.products:
            raise ValueError("name fmspcs, products, or both")
        if self.tcb_evaluation_data_number is not None and "update" in self.model_fields_set:
            raise ValueError("give update or tcb_evaluation_data_number, not both")
        for names, others, needed in (
            (_OF_INTEL, self.fmspcs, "Intel's collateral: it needs fmspcs"),
            (_OF_AMD, self.products, "AMD's lists: it needs products"),
        ):
            for name in names if not others else ():
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}: it is about {needed}")
        return self


class VerificationSection(Settings):
    """What the evidence of the other side must show."""

    trusted_roots: list[PathField] = Field(
        default=[],
        description="PEM files of further roots that may vouch for evidence, beside the "
        "manufacturers' own: those of simulated machines.",
    )
    certificates: list[PathField] = Field(
        default=[],
        description="PEM or DER files of ASKs, ASVKs and ARKs, for evidence that comes without "
        "them. They add no trust.",
    )
    revocation_lists: list[PathField] = Field(
        default=[],
        description="Revocation lists of AMD and Intel, PEM or DER. Changes are noticed. If any"
        " list is AMD's, each accepted product needs a current list of its root. "
        "TDX needs a current list of each issuer, here or in `collateral`.",
    )
    collateral: PathField | None = Field(
        default=None,
        description="Folder of signed collateral for TDX quotes. Changes are noticed. Without "
        "it every quote is refused.",
    )
    fetch: FetchSection | None = Field(
        default=None,
        description="Fills the folder `collateral` in the background, long before its files end. "
        "Without it somebody else fills the folder (`sds collateral fetch`).",
    )
    reference_values: ReferenceValues = Field(
        default=ReferenceValues(),
        description="What evidence must show. The defaults accept any measurement, but no guest"
        " that allows debugging, migration or provisional firmware.",
    )

    @property
    def fills(self) -> Path | None:
        """Return the folder that this process fills by itself, or None."""
        return None if self.fetch is None else self.collateral

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if self.fetch is not None and self.collateral is None:
            raise ValueError("fetch needs collateral: the folder that it fills")
        return self
