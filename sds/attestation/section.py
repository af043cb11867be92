"""The sections ``attestation:`` (our own evidence) and ``verification:`` (what others' must show).

Owns what the configurations of agent and authority share. Invariants: nothing is simulated
unless the section says so, and whoever runs a simulation is told loudly; a root that is not the
manufacturer's counts only where it is named here.

What a section names is loaded when the section makes it, in the functions below: a node has one
kind of evidence, and an agent that starts waits for nothing that it does not use.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sds.attestation.evidence import EvidenceKind
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.snp.report import Product  # noqa: TC001  pydantic reads annotations
from sds.attestation.verifier import EvidenceVerifier, LateVerifier
from sds.clock import SystemClock
from sds.errors import ConfigurationError, EvidenceError
from sds.settings.fields import PathField, Settings
from sds.settings.yamlfile import read
from sds.workload.kubernetes.settings import ServerSettings, api_server

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sds.attestation.evidence import Attester, Verifier
    from sds.attestation.kubernetes.token import TokenAttester
    from sds.attestation.snp.sources import Endorsements

_LOGGER = logging.getLogger(__name__)


class AttestationSection(Settings):
    """Our own evidence."""

    kind: Literal["auto", "sev-snp", "tdx", "simulated", "kubernetes-token"] | None = Field(
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

    def attester(self) -> Attester | None:
        """What gives our evidence, or None.

        Raises:
            ConfigurationError: it cannot be had.
        """
        if self.kind is None:
            return None
        if self.kind == "kubernetes-token":
            return self._token()
        if self.kind != "simulated":
            return self._guest()
        if self.descriptor is None:
            raise ConfigurationError(
                "attestation.descriptor is missing",
                advice="a simulated machine comes by an inherited descriptor: use `sds demo` or "
                "`sds dev`, which pass one",
            )
        from sds.attestation.snp.simulated import SimulatedMachine  # noqa: PLC0415  see the module

        try:
            machine = SimulatedMachine.receive(self.descriptor)
        except EvidenceError as error:
            raise ConfigurationError(
                f"attestation.descriptor: {error.message}", advice=error.advice
            ) from error
        _LOGGER.warning(
            "SIMULATED machine: its evidence proves nothing to anybody who does not trust its root",
            extra={"measurement": machine.measurement.hex()},
        )
        return machine

    def _guest(self) -> Attester:
        from sds.attestation.guest.attester import guest_attester  # noqa: PLC0415  see the module
        from sds.attestation.snp.sources import (  # noqa: PLC0415  see the module
            DirectoryEndorsements,
            EndorsedAttester,
            KdsEndorsements,
        )

        clock = SystemClock()
        try:
            attester = guest_attester(
                clock,
                kind=None if self.kind == "auto" else EvidenceKind(str(self.kind)),
                privilege_level=self.privilege_level,
            )
        except EvidenceError as error:
            raise ConfigurationError(
                f"attestation.kind {self.kind}: {error.message}", advice=error.advice
            ) from error
        sources: list[Endorsements] = []
        if self.certificates is not None:
            sources.append(DirectoryEndorsements(self.certificates))
        if self.certificate_server is not None:
            sources.append(KdsEndorsements(self.certificate_server, clock, product=self.product))
        return EndorsedAttester(attester, sources) if sources else attester

    def _token(self) -> TokenAttester:
        from sds.attestation.kubernetes.token import (  # noqa: PLC0415  see the module
            BoundTokenAttester,
            ProjectedTokenAttester,
        )

        if self.projected_token is not None:
            _LOGGER.warning(
                "the projected token that is sent as evidence binds nothing: whoever sees it can "
                "use it until it expires",
                extra={"path": str(self.projected_token)},
            )
            return ProjectedTokenAttester(self.projected_token)
        return BoundTokenAttester(api_server(self.api, os.environ))


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
        description="Revocation lists, PEM or DER. Where there are any, one by the root of each "
        "accepted product is needed, and it must be current.",
    )
    collateral: PathField | None = Field(
        default=None,
        description="Folder of signed collateral for TDX quotes; without it every quote is "
        "refused.",
    )
    reference_values: ReferenceValues = Field(
        default=ReferenceValues(),
        description="What is demanded; the defaults accept any measurement, and nothing that is "
        "open to debugging, migration or provisional firmware.",
    )

    def verifier(self, values: ReferenceValues | None = None) -> Verifier:
        """What verifies the other side's evidence.

        Args:
            values: reference values in place of this section's (a signed policy's).

        Raises:
            ConfigurationError: a root cannot be read.
        """
        from sds.attestation.snp.verifier import SnpVerifier  # noqa: PLC0415  see the module

        roots = [der for path in self.trusted_roots for der in _certificates(path)]
        if roots:
            _LOGGER.warning(
                "roots of SIMULATED machines are trusted: evidence under them proves nothing",
                extra={"roots": [str(path) for path in self.trusted_roots]},
            )
        demanded = self.reference_values if values is None else values
        lists = [der for path in self.revocation_lists for der in _revocation_lists(path)]
        helpers = [der for path in self.certificates for der in _certificates(path)]
        snp_roots = [der for der in roots if _of_amds_kind(der)]
        try:
            return EvidenceVerifier(
                {
                    EvidenceKind.SEV_SNP: SnpVerifier(
                        values=demanded,
                        trusted_roots=snp_roots,
                        certificates=helpers,
                        revocation_lists=[der for der in lists if not _of_intels_kind(der)],
                    ),
                    EvidenceKind.TDX: self._of_tdx(
                        demanded,
                        [der for der in roots if der not in snp_roots],
                        [der for der in lists if _of_intels_kind(der)],
                    ),
                }
            )
        except EvidenceError as error:
            raise ConfigurationError(
                f"verification: {error.message}", advice=error.advice
            ) from error

    def _of_tdx(
        self, values: ReferenceValues, roots: Sequence[bytes], lists: Sequence[bytes]
    ) -> Verifier:
        def make() -> Verifier:
            from sds.attestation.tdx.verifier import TdxVerifier  # noqa: PLC0415  see the module

            return TdxVerifier(
                values=values,
                trusted_roots=roots,
                collateral=self.collateral,
                revocation_lists=lists,
            )

        # What is wrong with a root is said at the start; without collateral every quote is refused.
        return make() if roots or self.collateral is not None else LateVerifier(make)


def _of_amds_kind(der: bytes) -> bool:
    """Whether a root is of SEV-SNP's hierarchy (RSASSA-PSS), not of Intel's (ECDSA)."""
    from sds.attestation.snp.certificate import Certificate  # noqa: PLC0415  see the module

    try:
        Certificate.parse(der)
    except EvidenceError:
        return False
    return True


def _of_intels_kind(der: bytes) -> bool:
    from sds.attestation.snp.revocation import read_revocation_list  # noqa: PLC0415  see the module

    try:
        read_revocation_list(der)
    except EvidenceError:
        return True
    return False


def _certificates(path: Path) -> tuple[bytes, ...]:
    from sds.attestation.pem import der_certificates  # noqa: PLC0415  see the module

    try:
        return der_certificates(read(path), what=str(path))
    except EvidenceError as error:
        raise ConfigurationError(error.message, advice=error.advice) from error


def _revocation_lists(path: Path) -> tuple[bytes, ...]:
    from sds.attestation.pem import der_revocation_lists  # noqa: PLC0415  see the module

    try:
        return der_revocation_lists(read(path), what=str(path))
    except EvidenceError as error:
        raise ConfigurationError(error.message, advice=error.advice) from error
