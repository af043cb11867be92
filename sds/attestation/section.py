"""The sections ``attestation:`` (our own evidence) and ``verification:`` (what others' must show).

Owns what the configurations of agent and authority share: data only. ``attestation.build`` makes
attesters and verifiers of it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from sds.attestation.reference_values import ReferenceValues
from sds.attestation.registry import KINDS
from sds.attestation.snp.report import Product  # noqa: TC001  pydantic reads annotations
from sds.settings.fields import PathField, Settings
from sds.workload.kubernetes.settings import ServerSettings


def _known_kind(name: str) -> str:
    known = ("auto", "simulated", *KINDS)
    if name not in known:
        raise ValueError(f"expected one of {', '.join(known)}")
    return name


class AttestationSection(Settings):
    """Our own evidence."""

    kind: Annotated[str, AfterValidator(_known_kind)] | None = Field(
        default=None,
        description="`auto`: what the confidential guest that we run in gives, by configfs-tsm or "
        "`/dev/sev-guest`; `sev-snp` and `tdx` say which kind that must be. `simulated`: a "
        "machine that exists only in software, for trying things out. "
        "`kubernetes-token`: a node without confidential hardware; the token says which pod asks, "
        "not what code runs. Without a kind this process gives no evidence.",
    )
    descriptor: Annotated[int, Field(ge=3)] | None = Field(
        default=None,
        description="`simulated` only: the inherited descriptor that the machine is read from.",
    )
    privilege_level: Annotated[int, Field(ge=0, le=3)] | None = Field(
        default=None,
        description="SEV-SNP only: VMPL to ask for. The kernel's own level without it.",
    )
    certificates: PathField | None = Field(
        default=None,
        description="SEV-SNP only: directory of VCEKs, ASKs and ARKs (PEM or DER, any names), for "
        "hosts that give none with the report.",
    )
    certificate_server: Annotated[str, Field(pattern=r"^https?://[^\s?#]+$")] | None = Field(
        default=None,
        description="SEV-SNP only: URL of a server in the layout of AMD's KDS, most often a cache "
        "of your own; what it answers is never trusted without the chain.",
    )
    product: Product | None = Field(
        default=None,
        description="SEV-SNP only: what to ask that server for where a report of version 2 does "
        "not tell.",
    )
    projected_token: PathField | None = Field(
        default=None,
        description="`kubernetes-token` only: a projected token that is sent as it is. It binds "
        "nothing. Without it a token bound to each request is asked for (RBAC `create` on "
        "`serviceaccounts/token`).",
    )
    api: ServerSettings = Field(
        default=ServerSettings(),
        description="`kubernetes-token` only: the API server that bound tokens are asked of.",
    )


class VerificationSection(Settings):
    """What the evidence of the other side must show."""

    trusted_roots: list[PathField] = Field(
        default=[],
        description="PEM files of roots trusted to vouch for evidence beside the manufacturer's "
        "own: those of simulated machines.",
    )
    certificates: list[PathField] = Field(
        default=[],
        description="PEM or DER files of ASKs, ASVKs and ARKs that evidence may come without. "
        "They add no trust.",
    )
    revocation_lists: list[PathField] = Field(
        default=[],
        description="Revocation lists of AMD and Intel, PEM or DER; followed while running. Where "
        "there are any of AMD's, the root of each accepted product needs a current one. TDX needs "
        "a current one of each issuer, here or in `collateral`.",
    )
    collateral: PathField | None = Field(
        default=None,
        description="Folder of signed collateral for TDX quotes, followed while running; without "
        "it every quote is refused.",
    )
    reference_values: ReferenceValues = Field(
        default=ReferenceValues(),
        description="What is demanded; the defaults accept any measurement, and nothing that is "
        "open to debugging, migration or provisional firmware.",
    )
