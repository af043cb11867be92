"""The sections ``attestation:`` (our own evidence) and ``verification:`` (what others' must show).

Owns what the configurations of agent and authority share. Invariants: nothing is simulated
unless the section says so, and whoever runs a simulation is told loudly; a root that is not the
manufacturer's counts only where it is named here.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sds.attestation.kubernetes_token import (
    BoundTokenAttester,
    ProjectedTokenAttester,
    TokenAttester,
)
from sds.attestation.reference_values import ReferenceValues
from sds.attestation.simulated import SimulatedMachine
from sds.attestation.snp import SnpVerifier
from sds.errors import CertificateError, ConfigurationError, EvidenceError
from sds.fields import PathField, Settings
from sds.pki import certificates_from_pem
from sds.workload.kubernetes.settings import ServerSettings, api_server
from sds.yamlfile import read

if TYPE_CHECKING:
    from pathlib import Path

    from sds.attestation.evidence import Attester, Verifier

_LOGGER = logging.getLogger(__name__)


class AttestationSection(Settings):
    """Our own evidence."""

    kind: Literal["simulated", "kubernetes-token"] | None = Field(
        default=None,
        description="`simulated`: a machine that exists only in software, for trying things out. "
        "`kubernetes-token`: a node without confidential hardware; the token says which pod asks, "
        "not what code runs. Without a kind this process gives no evidence.",
    )
    descriptor: Annotated[int, Field(ge=3)] | None = Field(
        default=None,
        description="`simulated` only: the inherited descriptor that the machine is read from.",
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
        if self.descriptor is None:
            raise ConfigurationError(
                "attestation.descriptor is missing",
                advice="a simulated machine comes by an inherited descriptor: use `sds demo` or "
                "`sds dev`, which pass one",
            )
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

    def _token(self) -> TokenAttester:
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
        roots = [der for path in self.trusted_roots for der in _certificates(path)]
        if roots:
            _LOGGER.warning(
                "roots of SIMULATED machines are trusted: evidence under them proves nothing",
                extra={"roots": [str(path) for path in self.trusted_roots]},
            )
        return SnpVerifier(
            values=self.reference_values if values is None else values, trusted_roots=roots
        )


def _certificates(path: Path) -> tuple[bytes, ...]:
    try:
        return certificates_from_pem(read(path))
    except CertificateError as error:
        raise ConfigurationError(f"{path}: {error.message}", advice=error.advice) from error
